"""LoRA adapters stacked along the rank: their sum as one plain LoRA; O-LoRA does just that."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import TrainerCallback

from lcia.errors import ConfigError
from lcia.methods.base import Method, TaskContext


class Stacking(Method):
    """Trains a new LoRA beside the frozen earlier ones; all act as their sum.

    They are stored as one plain adapter whose rank grows by r with every task.
    """

    sharded: ClassVar[bool] = False

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
        """Freeze what ``frozen`` says: no gradient, and no step of whatever optimizer."""
        self._factors = {n: p for n, p in context.parameters.items() if rank_dim(n) is not None}
        parts = [self.frozen(name, p) for name, p in self._factors.items()]
        if not any(part.numel() for part in parts):
            return
        for name, parameter in self._factors.items():
            parameter.register_hook(partial(self._drop, name))
        trainer.add_callback(_Frozen(parts))

    def frozen(self, name: str, factor: Tensor) -> Tensor:
        """Return the part of a stacked factor that stays as it is: the earlier LoRAs'."""
        return self._halves(name, factor)[0]

    def _halves(self, name: str, factor: Tensor) -> tuple[Tensor, Tensor]:
        """Return the earlier LoRAs' part of a stacked factor, and the new one's."""
        dim = rank_dim(name)
        assert dim is not None, name
        new = factor.shape[dim] // (self._earlier + 1)
        return factor.split([factor.shape[dim] - new, new], dim=dim)

    def _drop(self, name: str, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        self.frozen(name, gradient).zero_()
        return gradient


class _Frozen(TrainerCallback):
    """Puts back after every step what weight decay took."""

    def __init__(self, parts: list[Tensor]) -> None:
        self._parts = [part.detach() for part in parts]
        self._values = [part.clone() for part in self._parts]

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for part, value in zip(self._parts, self._values, strict=True):
            part.copy_(value)


def stacked(adapter: Mapping[str, Any], times: int) -> Any:
    """Return the ``peft.LoraConfig`` of ``times`` LoRAs as one: A = [A_1; A_2; ...], B likewise.

    Rank and ``lora_alpha`` grow alike, so that the scale lora_alpha / r of each part stays.

    Args:
        adapter: ``LoraConfig`` of one part, with ``r`` and ``lora_alpha``.
        times: how many parts.

    Raises:
        ConfigError: ``use_rslora``, whose parts do not add up.
    """
    from peft import LoraConfig

    if adapter.get("use_rslora"):
        raise ConfigError(
            "adapter.use_rslora is set; the method stacks LoRAs whose scale is lora_alpha / r. "
            "Remove it."
        )
    patterns = {
        key: {name: times * value for name, value in adapter[key].items()}
        for key in ("rank_pattern", "alpha_pattern")
        if key in adapter
    }
    sizes = {key: times * adapter[key] for key in ("r", "lora_alpha")}
    return LoraConfig(**{**adapter, **patterns, **sizes})


def rank_dim(name: str) -> int | None:
    """Return which dimension of a parameter is the rank, by its name: A's 0, B's 1, else None."""
    dims = {"lora_A": 0, "lora_embedding_A": 0, "lora_B": 1, "lora_embedding_B": 1}
    return next((dims[part] for part in name.split(".") if part in dims), None)


def factor_pairs(names: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the names of A and B of every adapted module."""
    for name in names:
        if ".lora_A." in name:
            yield name, name.replace(".lora_A.", ".lora_B.")


class OLoRA(Stacking):
    """Trains a new LoRA beside the frozen earlier ones, its A kept orthogonal to theirs.

    Adds strength * sum over modules of |A_old A_new^T|_1 + shrink * sum of |A_new|_2 + |B_new|_2.

    Source: arXiv:2310.14152; the L1 norm (the paper squares) and ``shrink`` as in its code.
    """

    settings: ClassVar[dict[str, Any]] = {"strength": 0.5, "shrink": 0.0}

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
