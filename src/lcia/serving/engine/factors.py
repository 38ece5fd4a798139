"""The LoRA factors of one stored adapter, read without building a peft model."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcia.errors import StoreError
from lcia.models.experts import EXPERT_ROUTERS
from lcia.models.lora import read_config

PREFIX = "base_model.model."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Factors:
    """One adapter: y = W x + up^T (down x) for every module it changes.

    Attributes:
        modules: module name to ``(down, up)``, both of shape (rank, features); ``up`` holds the
            adapter's scaling.
        rank: the largest rank of a module.
        expert_routers: of a mixture of experts, module name to W of shape (experts, inputs): the
            blocks of ``down x`` are weighted by softmax(W x).
    """

    modules: Mapping[str, tuple[Any, Any]]
    rank: int
    expert_routers: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Memory the factors take, in bytes."""
        factors = (factor for pair in self.modules.values() for factor in pair)
        return sum(tensor.nbytes for tensor in (*factors, *self.expert_routers.values()))


def read_factors(folder: Path, *, dtype: Any, device: Any) -> Factors:
    """Read an adapter's factors.

    Args:
        folder: a peft adapter directory.
        dtype: of the factors in memory: the base model's.
        device: where they are put.

    Raises:
        StoreError: the folder is damaged, or the adapter is more than plain LoRA.
    """
    config = read_config(folder)
    path = folder / "adapter_model.safetensors"
    tensors = _read(path)
    modules: dict[str, tuple[Any, Any]] = {}
    for name in sorted(tensors):
        module, kind, _ = name.removeprefix(PREFIX).rpartition(".lora_A.weight")
        if kind:
            down, up = tensors[name], tensors.get(f"{PREFIX}{module}.lora_B.weight")
            if up is None or down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
                raise StoreError(f"{path}: {module} is not a pair of LoRA matrices.")
            scaled = up.float().T * scaling(config, module, rank=len(down))
            modules[module] = tuple(
                t.to(device=device, dtype=dtype).contiguous() for t in (down, scaled)
            )
    if not modules:
        raise StoreError(f"{path}: holds no LoRA matrices; expected those of at least one layer.")
    if 2 * len(modules) != len(tensors):
        extra = next(n for n in tensors if ".lora_A.weight" not in n and ".lora_B." not in n)
        raise StoreError(f"{path}: holds {extra}, which is no LoRA matrix; it is not served.")
    stored = folder / EXPERT_ROUTERS
    routers = {
        name.removeprefix(PREFIX): router.to(device=device, dtype=dtype)
        for name, router in (_read(stored) if stored.is_file() else {}).items()
    }
    _check(folder, modules, routers)
    return Factors(
        modules=modules,
        rank=max(len(down) for down, _ in modules.values()),
        expert_routers=routers,
    )


def _check(
    folder: Path, modules: Mapping[str, tuple[Any, Any]], routers: Mapping[str, Any]
) -> None:
    """Refuse what would fail, or reach other rows, only in the middle of a batch."""
    for name, router in routers.items():
        down = modules[name][0] if name in modules else None
        if down is None or router.ndim != 2 or router.shape[1] != down.shape[1]:
            raise StoreError(
                f"{folder / EXPERT_ROUTERS}: {name} is no expert router of one of the adapter's "
                "layers."
            )
        if len(down) % len(router):
            raise StoreError(
                f"{folder / EXPERT_ROUTERS}: {name} has {len(router)} experts, but rank "
                f"{len(down)}."
            )
    named = [(name, factor) for name, pair in modules.items() for factor in pair]
    for name, factor in [*named, *routers.items()]:
        if not bool(factor.isfinite().all()):
            raise StoreError(
                f"{folder}: {name} holds values that are not finite. Roll back to a version before "
                "it, or learn the task again."
            )


def _read(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path}: cannot be read: {error}") from error


def scaling(config: Any, module: str, *, rank: int) -> float:
    """Return what peft multiplies a module's LoRA output with: alpha / r, or alpha / sqrt(r)."""
    from peft.utils.other import get_pattern_key

    patterns = config.alpha_pattern
    alpha = patterns.get(get_pattern_key(list(patterns), module), config.lora_alpha)
    return float(alpha / (math.sqrt(rank) if config.use_rslora else rank))
