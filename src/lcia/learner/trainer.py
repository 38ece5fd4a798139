"""transformers' Trainer with the loss a method adds."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import Trainer

from lcia.learner.collator import IGNORED
from lcia.methods.base import Method


class MethodTrainer(Trainer):
    """Adds ``method.extra_loss`` to the model's loss, scaled the way that one is.

    Args:
        method: adds the loss.
        **options: of ``Trainer``.
    """

    def __init__(self, *, method: Method, **options: Any) -> None:
        super().__init__(**options)
        self.method = method

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a batch, with its outputs if asked for."""
        loss, outputs = super().compute_loss(
            model, dict(inputs), return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        extra = self.method.extra_loss(self.model, inputs, outputs)
        if extra is not None:
            loss = loss + self._share(inputs["labels"], num_items_in_batch) * extra
        return (loss, outputs) if return_outputs else loss

    def _share(self, labels: Tensor, num_items: Tensor | int | None) -> Tensor | float:
        """Return the weight of a batch: shares of an optimizer step's answer tokens.

        Over the batches that are accumulated they add up to 1; over ranks too, since gradients
        are averaged there, which the number of processes makes up for.
        """
        if num_items is None:
            return 1.0  # then Trainer divides each batch's loss by their number
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return (labels[..., 1:] != IGNORED).sum() * processes / num_items
