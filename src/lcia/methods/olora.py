"""Orthogonal subspaces: every task a LoRA of its own, at right angles to the earlier ones."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import TrainerCallback

from lcia.methods.base import Method, TaskContext
from lcia.methods.stacking import rank_dim, stacked


class OLoRA(Method):
    """Trains a new LoRA beside the frozen earlier ones, its A kept orthogonal to theirs.

    Adds strength * sum over modules of |A_old A_new^T|_1 + shrink * sum of |A_new|_2 + |B_new|_2.
    All LoRAs act as their sum, and are one plain adapter whose rank grows by r with every task.

    Source: arXiv:2310.14152; the L1 norm (the paper squares) and ``shrink`` as in its code.
    """

    sharded: ClassVar[bool] = False
    settings: ClassVar[dict[str, Any]] = {"strength": 0.5, "shrink": 0.0}

    def open(self, host: Any, start: Path | None, adapter: Mapping[str, Any]) -> Any:
        """Put the earlier LoRAs and a fresh one on the model, as one adapter."""
        from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
        from peft.utils import load_peft_weights

        self._earlier = LoraConfig.from_pretrained(str(start)).r // adapter["r"] if start else 0
        model = host.new_adapter(stacked(adapter, self._earlier + 1))
        if start is not None:
            state = get_peft_model_state_dict(model)
            for name, old in load_peft_weights(str(start), device="cpu").items():
                dim = rank_dim(name)
                if dim is None:  # no LoRA factor: trained on
                    state[name] = old
                else:
                    state[name].narrow(dim, 0, old.shape[dim]).copy_(old)
            set_peft_model_state_dict(model, state)
        return model

    def attach(self, trainer: Any, context: TaskContext) -> None:
        """Freeze the earlier LoRAs: no gradient, and no step of whatever optimizer."""
        self._factors = {n: p for n, p in context.parameters.items() if rank_dim(n) is not None}
        if self._earlier:
            for name, parameter in self._factors.items():
                parameter.register_hook(partial(self._drop_old, name))
            trainer.add_callback(_Frozen([self._halves(n, p)[0] for n, p in self._factors.items()]))

    def extra_loss(self, model: Any, inputs: Mapping[str, Any], outputs: Any) -> Any | None:
        """Return the penalty on overlap, and on the new LoRA's size."""
        if not self._earlier:
            return None
        halves = {name: self._halves(name, p) for name, p in self._factors.items()}
        overlap = [
            (old.detach().flatten(1) @ new.flatten(1).T).abs().sum()
            for name, (old, new) in halves.items()
            if rank_dim(name) == 0
        ]
        sizes = [torch.linalg.vector_norm(new) for _, new in halves.values()]
        return self.config["strength"] * sum(overlap) + self.config["shrink"] * sum(sizes)

    def _halves(self, name: str, factor: Tensor) -> tuple[Tensor, Tensor]:
        """Return the earlier LoRAs' part of a stacked factor, and the new one's."""
        dim = rank_dim(name)
        assert dim is not None, name
        new = factor.shape[dim] // (self._earlier + 1)
        return factor.split([factor.shape[dim] - new, new], dim=dim)

    def _drop_old(self, name: str, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        self._halves(name, gradient)[0].zero_()
        return gradient


class _Frozen(TrainerCallback):
    """Puts back after every step what weight decay took."""

    def __init__(self, parts: list[Tensor]) -> None:
        self._parts = [part.detach() for part in parts]
        self._values = [part.clone() for part in self._parts]

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for part, value in zip(self._parts, self._values, strict=True):
            part.copy_(value)
