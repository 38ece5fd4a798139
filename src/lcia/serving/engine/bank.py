"""Many LoRA adapters on one model, and a batch whose rows each use their own.

Factors are read as they are stored, without building a peft model.
"""

import dataclasses
import math
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from lcia.errors import StoreError
from lcia.models.lora import EXPERT_ROUTERS, read_config

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


STACKED = 8
"""Adapters kept stacked at least, so that a usual mix of them never stacks again."""


class AdapterBank:
    """Applies to each row of a batch its own adapter, by two products per layer.

    The factors of the S adapters in use are stacked, down: (S r, in) and up: (S r, out). With
    others (rows, S r), true but where a row's own adapter stands, ``y += hidden up`` for
    ``hidden = (x down^T).masked_fill(others, 0)`` equals peft's ``adapter_names`` for all rows at
    once; peft runs each layer once per adapter. Unlike a product by zero, the mask keeps what one
    adapter overflows to in its own rows. The base model is never changed: hooks add to its
    outputs.

    Not thread-safe: one thread loads, selects and computes.

    Args:
        model: the base model.
        max_loaded: adapters kept in memory; of those no row uses, the least recently used one
            leaves first.
    """

    def __init__(self, model: Any, *, max_loaded: int) -> None:
        self.max_loaded = max_loaded
        self.loads = 0
        # In float32 on a CPU, as peft does it: with factors this thin, half precision has no
        # faster products there, only conversions inside of them.
        self._dtype = torch.float32 if model.device.type == "cpu" else model.dtype
        self._model = model
        self._modules = dict(model.named_modules())
        self._sites: dict[str, _Site] = {}
        self._loaded: OrderedDict[str, Factors] = OrderedDict()
        self._users: Counter[str] = Counter()
        self._stacked: dict[str, int] = {}
        self._rank = 0
        self._mask = _Mask()
        self._selected: tuple[str | None, ...] = ()

    @property
    def loaded(self) -> list[str]:
        """Keys of the adapters in memory, the least recently used first."""
        return list(self._loaded)

    @property
    def nbytes(self) -> int:
        """Memory the loaded adapters take, in bytes, without the stack."""
        return sum(factors.nbytes for factors in self._loaded.values())

    def acquire(self, key: str, folder: Path) -> None:
        """Load an adapter unless it is, and keep it until it is released.

        Raises:
            StoreError: the adapter is damaged, more than plain LoRA, or for another model.
        """
        if key not in self._loaded:
            factors = read_factors(folder, dtype=self._dtype, device=self._model.device)
            self._check(factors, folder)
            self._loaded[key] = factors
            self.loads += 1
        self._loaded.move_to_end(key)
        self._users[key] += 1
        self._evict()

    def release(self, key: str) -> None:
        """Say that a row no longer uses an adapter."""
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]
        self._evict()

    def select(self, rows: Sequence[str | None]) -> None:
        """Choose each row's adapter for the next forward passes; None is the base model.

        Args:
            rows: keys that were acquired, one per row of the batch.
        """
        chosen = tuple(rows)
        needed = {key for key in chosen if key is not None}
        if not needed <= self._stacked.keys():
            self._stack()
        elif chosen == self._selected:
            return
        if needed:
            others = torch.ones(len(chosen), 1, len(self._stacked), self._rank, dtype=torch.bool)
            for row, key in enumerate(chosen):
                if key is not None:
                    others[row, 0, self._stacked[key]] = False
            self._mask.others = others.flatten(2).to(self._model.device)
        else:
            self._mask.others = None
        self._selected = chosen

    def release_all(self) -> None:
        """Say that no row uses an adapter any more."""
        self._users.clear()
        self._evict()

    def detach(self) -> None:
        """Take all hooks off the model."""
        for site in self._sites.values():
            site.hook.remove()
        self._sites.clear()
        self._stacked.clear()

    def _stack(self) -> None:
        """Stack the adapters in use, and others of late as far as there is room."""
        idle = [key for key in reversed(self._loaded) if key not in self._users]
        keys = [*self._users, *idle[: max(0, STACKED - len(self._users))]]
        # Memory may run out in the middle: nothing counts as stacked before all of it is.
        self._stacked, self._selected = {}, ()
        stacked = [self._loaded[key] for key in keys]
        self._rank = max(factors.rank for factors in stacked)
        for name in {name for factors in stacked for name in factors.modules} - set(self._sites):
            self._sites[name] = _Site(self._modules[name], self._mask)
        for name, site in self._sites.items():
            site.stack([factors.modules.get(name) for factors in stacked], rank=self._rank)
            site.expert_routers = {
                slot: factors.expert_routers[name]
                for slot, factors in enumerate(stacked)
                if name in factors.expert_routers
            }
        self._stacked = {key: slot for slot, key in enumerate(keys)}

    def _evict(self) -> None:
        idle = [key for key in self._loaded if key not in self._users]
        for key in idle[: max(0, len(self._loaded) - self.max_loaded)]:
            del self._loaded[key]

    def _check(self, factors: Factors, folder: Path) -> None:
        for name, (down, up) in factors.modules.items():
            module = self._modules.get(name)
            weight = getattr(module, "weight", None)
            if isinstance(module, torch.nn.Embedding) or weight is None:
                raise StoreError(f"{folder}: {name} is no linear layer of the base model.")
            shape = {down.shape[1], up.shape[1]}
            if weight.ndim == 2 and weight.is_floating_point() and set(weight.shape) != shape:
                raise StoreError(
                    f"{folder}: {name} is {down.shape[1]} -> {up.shape[1]}, but "
                    f"{tuple(weight.shape)} in the base model."
                )


class _Mask:
    """Shared by all sites: (rows, 1, S r), or None where all rows use the base model."""

    others: Any = None


class _Site:
    """A layer that adapters change."""

    def __init__(self, module: Any, mask: _Mask) -> None:
        self.mask = mask
        self.down: Any = None
        self.up: Any = None
        self.expert_routers: dict[int, Any] = {}
        self.hook = module.register_forward_hook(self._add)

    def stack(self, pairs: Sequence[tuple[Any, Any] | None], *, rank: int) -> None:
        known = next((pair for pair in pairs if pair is not None), None)
        if known is None:
            self.down = self.up = None
            return
        down, up = (factor.new_zeros(len(pairs), rank, factor.shape[1]) for factor in known)
        for slot, pair in enumerate(pairs):
            if pair is not None:
                down[slot, : len(pair[0])], up[slot, : len(pair[1])] = pair
        self.down, self.up = down.flatten(0, 1), up.flatten(0, 1)
        self.rank, self.ranks = rank, [len(pair[0]) if pair else 0 for pair in pairs]

    def _add(self, module: Any, args: tuple[Any, ...], output: Any) -> None:
        if self.mask.others is None or self.down is None:
            return
        inputs = args[0].to(self.down.dtype)
        hidden = F.linear(inputs, self.down)
        for slot, router in self.expert_routers.items():
            self._mix(hidden, F.linear(inputs, router).softmax(-1), slot=slot)
        hidden.masked_fill_(self.mask.others, 0)
        # In place: the output belongs to the layer's own product, and nobody else has seen it.
        rows = output.view(-1, output.shape[-1])
        if rows.dtype == hidden.dtype:
            rows.addmm_(hidden.flatten(0, -2), self.up)
        else:
            rows.add_(hidden.flatten(0, -2) @ self.up)

    def _mix(self, hidden: Any, weights: Any, *, slot: int) -> None:
        """Weight the experts of one adapter, each a block of its rank."""
        start, width = slot * self.rank, self.ranks[slot]
        block = hidden[..., start : start + width].unflatten(-1, (weights.shape[-1], -1))
        block.mul_(weights.unsqueeze(-1))
