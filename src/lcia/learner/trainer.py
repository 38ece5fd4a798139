"""transformers' Trainer with the loss a method adds, and a projector beside the adapter."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import Trainer, TrainerCallback

from lcia.distributed import zero
from lcia.distributed.fsdp import shard, whole_parameters
from lcia.distributed.launch import Launch
from lcia.distributed.plan import check_in_force, check_wrapped, fill_batches
from lcia.methods.base import Method
from lcia.models.batches import IGNORED
from lcia.models.visual import Projector


class MethodTrainer(Trainer):
    """Adds ``method.extra_loss`` to the model's loss, scaled the way that one is.

    Args:
        method: adds the loss.
        projector: is trained, too, with a learning rate of its own; None: nothing is.
        projector_learning_rate: that rate; it follows the schedule of the other.
        launch: what this command was started for.
        fsdp: how FSDP2 shards the model, as ``fsdp_options`` has it; None: it does not.
        **options: of ``Trainer``.
    """

    def __init__(
        self,
        *,
        method: Method,
        projector: Projector | None = None,
        projector_learning_rate: float = 0.0,
        launch: Launch,
        fsdp: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_in_force(self, launch)
        self.launch = launch
        self._fsdp = fsdp
        self.method = method
        self.projector = projector
        self.projector_learning_rate = projector_learning_rate

    def get_train_dataloader(self) -> Any:
        """Return Trainer's batches; where processes share them, none counts a sample twice."""
        loader = super().get_train_dataloader()
        processes = self.accelerator.num_processes
        # Without a loss that is a sum over tokens, a batch without labels has no mean.
        if processes > 1 and self.model_accepts_loss_kwargs:
            fill_batches(loader, processes=processes)
        return loader

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapter; what is spread over processes is gathered, so all take part."""
        if not self.launch.spreads:
            super().save_model(output_dir, _internal_call=_internal_call)
            return
        model: Any = self.model
        if self.launch.zero:
            tensors = zero.whole_parameters(model, self.optimizer)
        else:
            tensors = whole_parameters(model)
        if self.args.should_save:
            model.save_pretrained(output_dir or self.args.output_dir, state_dict=tensors)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any
    ) -> Any:
        """Shard the model and wrap it.

        Its weights are those of the checkpoint now, but under DeepSpeed: there ``TrainingState``
        has them, and Trainer would look for DeepSpeed's own checkpoint.
        """
        if self._fsdp is not None:
            shard(self.model, **self._fsdp)
            self.is_distributed_loading_by_transformers = True  # nobody else wraps it then
        prepared = super()._prepare_for_training(
            max_steps, train_dataloader, None if self.launch.zero else resume_from_checkpoint
        )
        check_wrapped(self.model_wrapped, self.launch)
        return prepared

    def close(self) -> None:
        """Take off the model what trained it, once it is saved."""
        if self.launch.zero:
            zero.forget(self.model_wrapped)

    @contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        """Let gradients be reduced with the last batch that is accumulated."""
        model: Any = self.model
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)

    def create_optimizer(self, *args: Any, **options: Any) -> Any:
        """Return Trainer's optimizer, the projector's parameters in groups of their own."""
        optimizer = super().create_optimizer(*args, **options)
        if self.projector is not None:
            own = set(self.projector.parameters())
            for group in list(optimizer.param_groups):
                if moved := [p for p in group["params"] if p in own]:
                    group["params"] = [p for p in group["params"] if p not in own]
                    settings = {**group, "lr": self.projector_learning_rate}
                    optimizer.add_param_group({**settings, "params": moved})
        return optimizer

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
        return (labels != IGNORED).sum() * processes / num_items


class ProjectorState(TrainerCallback):
    """Adds the projector to Trainer's checkpoints, which hold what peft saves and no more."""

    def __init__(self, projector: Projector) -> None:
        self.projector = projector

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write it into the checkpoint that was just saved."""
        if state.is_world_process_zero:
            self.projector.save(Path(args.output_dir) / f"checkpoint-{state.global_step}")
