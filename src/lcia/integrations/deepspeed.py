"""Dynamic EMA under DeepSpeed ZeRO-0, 1, 2 and 3.

DeepSpeed steps and clears gradients inside ``backward``, so no gradient is left where a training
loop or the Trainer's hook could read it. Its ZeRO optimizers drive an ordinary torch optimizer
over flat float32 partitions, though: there, right after its step, are the parameters and the
gradients (reduced, unscaled, clipped) that the step used, and torch's post-step hook sees them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from lcia.ema import DynamicEMA, PrecisionMerge, Rule
from lcia.ema.sharding import Shards
from lcia.errors import TrainingError


class Span(NamedTuple):
    """Which elements of a whole parameter a rank's fragment holds."""

    start: int
    shape: torch.Size
    group: ProcessGroup | None


class ZeroShards(Shards):
    """The float32 fragments of a model's parameters that this rank's optimizer steps.

    Args:
        model: the module given to DeepSpeed.
        optimizer: what ``accelerator.prepare`` or ``deepspeed.initialize`` returned for it.

    Raises:
        TrainingError: a trainable parameter is nowhere in the optimizer's float32 partitions,
            as with optimizer states offloaded from ZeRO-3 or fp16 at stage 0.
    """

    def __init__(self, model: torch.nn.Module, optimizer: Any) -> None:
        self._zero = getattr(optimizer, "optimizer", optimizer)
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._stepped: dict[int, tuple[Tensor, Tensor]] = {}
        self._spans: dict[int, Span] = {}
        self.fragments: dict[str, Tensor] = {}
        for name, parameter in self._parameters.items():
            fragment, span = _fragment(name, parameter)
            fragment = fragment.detach().requires_grad_()
            self.fragments[name], self._spans[id(fragment)] = fragment, span
        inner = torch_optimizer(self._zero)
        self._handle = inner.register_step_post_hook(self._after_step)

    def take_gradients(self) -> bool:
        """Give each fragment the gradient of the step just taken; False if none was taken."""
        flats, self._stepped = list(self._stepped.values()), {}
        grads = {_storage(flat): (flat, grad) for flat, grad in flats}
        for name, fragment in self.fragments.items():
            fragment.grad = None
            if flats and not fragment.numel():
                fragment.grad = torch.zeros_like(fragment)
            elif _storage(fragment) in grads:
                flat, grad = grads[_storage(fragment)]
                offset = fragment.storage_offset() - flat.storage_offset()
                values = grad.reshape(-1).narrow(0, offset, fragment.numel())
                fragment.grad = values.view_as(fragment)
            elif flats and self._spans[id(fragment)].group is not None:
                raise TrainingError(
                    f"{name}: DeepSpeed stepped, but not the partition this parameter is in. "
                    "Optimizer states offloaded from ZeRO-3 are not supported."
                )
        return bool(flats)

    def detach(self) -> None:
        """Stop listening to the optimizer."""
        self._handle.remove()

    def shape(self, parameter: Tensor) -> torch.Size:
        """Return the shape of the whole parameter."""
        return self._spans[id(parameter)].shape

    def groups(self, parameter: Tensor) -> list[ProcessGroup]:
        """Return the process group the parameter is spread over, none at ZeRO-0."""
        group = self._spans[id(parameter)].group
        return [] if group is None else [group]

    def full(self, values: Tensor, *, like: Tensor) -> Tensor:
        """Return the whole of which ``values`` is this rank's part; collective."""
        span = self._spans[id(like)]
        if span.group is None:
            return values
        whole = values.new_zeros(span.shape.numel())
        whole[span.start : span.start + values.numel()] = values
        torch.distributed.all_reduce(whole, group=span.group)
        return whole.view(span.shape)

    def part(self, values: Tensor, *, like: Tensor) -> Tensor:
        """Return this rank's part of a whole."""
        span = self._spans[id(like)]
        values = values.detach().to(like.device)
        if span.group is None:
            return values
        return values.reshape(-1)[span.start : span.start + like.numel()]

    def propagate(self) -> None:
        """Bring the model's own parameters to the fragments' values, on all ranks."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                fragment = self.fragments[name]
                if self.groups(fragment):  # else the fragment is the parameter
                    _assign(parameter, self.full(fragment.detach(), like=fragment))

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # A ZeRO optimizer steps one flat partition after another and drops its gradient at once.
        for group in optimizer.param_groups:
            for flat in group["params"]:
                if flat.grad is not None:
                    self._stepped[id(flat)] = (flat, flat.grad)


class DeepSpeedEMA(DynamicEMA):
    """``DynamicEMA`` of a model that DeepSpeed trains; call ``update()`` after ``backward``.

    The average lives beside each rank's float32 fragments; the sums of a step cross ranks in one
    all-reduce. States load across world sizes, ZeRO stages, DDP and FSDP2.

    Args:
        model: the module given to DeepSpeed.
        optimizer: what ``accelerator.prepare`` or ``deepspeed.initialize`` returned for it.
        rule: as for ``DynamicEMA``.
        initial: as for ``DynamicEMA``.

    Raises:
        TrainingError: this way of running DeepSpeed keeps no float32 partition to read.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: Any,
        *,
        rule: Rule | Mapping[str, Any] | str = "release",
        initial: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.shards = ZeroShards(model, optimizer)
        fragments = self.shards.fragments.items()
        super().__init__(fragments, rule=rule, initial=initial, shards=self.shards)

    def update(self) -> None:
        """Move theta* after ``backward`` took an optimizer step.

        Raises:
            TrainingError: DeepSpeed took no step since the last call. Where it skips steps on
                fp16 overflow, ask ``optimizer.step_was_skipped`` first.
        """
        if not self.shards.take_gradients():
            raise TrainingError(
                "DeepSpeedEMA.update(): DeepSpeed took no optimizer step since the last update. "
                "Call update() once per step, after backward() at an accumulation boundary."
            )
        super().update()


class DeepSpeedMerge(PrecisionMerge):
    """``PrecisionMerge`` of a model that DeepSpeed trains; ``accumulate()`` after ``backward``.

    Args:
        model: the module given to DeepSpeed.
        optimizer: what ``accelerator.prepare`` or ``deepspeed.initialize`` returned for it.
        old_weight: as for ``PrecisionMerge``.
        precision_old: as for ``PrecisionMerge``.

    Raises:
        TrainingError: this way of running DeepSpeed keeps no float32 partition to read.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: Any,
        *,
        old_weight: float = 0.1,
        precision_old: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.shards = ZeroShards(model, optimizer)
        super().__init__(
            self.shards.fragments.items(),
            old_weight=old_weight,
            precision_old=precision_old,
            shards=self.shards,
        )

    def accumulate(self) -> None:
        """Add the squared gradients of the step that ``backward`` took.

        Raises:
            TrainingError: DeepSpeed took no step since the last call.
        """
        self.shards.take_gradients()
        super().accumulate()


def torch_optimizer(optimizer: Any) -> Optimizer:
    """Return the torch optimizer that another one drives, through all its wrappers.

    Raises:
        TrainingError: there is none.
    """
    while not isinstance(optimizer, Optimizer) or hasattr(optimizer, "optimizer"):
        if not hasattr(optimizer, "optimizer"):
            raise TrainingError(
                f"{type(optimizer).__name__} drives no torch optimizer that dynamic EMA could read."
            )
        optimizer = optimizer.optimizer
    return optimizer


def _fragment(name: str, parameter: Tensor) -> tuple[Tensor, Span]:
    """Return the float32 values of a parameter that this rank steps, and where they belong."""
    if hasattr(parameter, "ds_id"):
        return _zero3_fragment(parameter)
    if not hasattr(parameter, "_hp_mapping"):
        if parameter.dtype != torch.float32:
            raise TrainingError(
                f"{name} is {parameter.dtype} without a float32 partition; use ZeRO-1, 2 or 3."
            )
        return parameter, Span(0, parameter.shape, None)
    attributes: Any = parameter
    mapping, group = attributes._hp_mapping, attributes._dp_group
    if mapping is None:
        return parameter.new_empty(0, dtype=torch.float32), Span(0, parameter.shape, group)
    return mapping.hp_fragment, Span(mapping.lp_fragment_address.start, parameter.shape, group)


def _zero3_fragment(parameter: Any) -> tuple[Tensor, Span]:
    from deepspeed.utils import safe_get_local_fp32_param

    group, size = parameter.ds_process_group, parameter.partition_numel()
    start = min(torch.distributed.get_rank(group) * size, parameter.ds_numel)
    own = min(size, parameter.ds_numel - start)  # the rest of the last partitions is padding
    values = safe_get_local_fp32_param(parameter).reshape(-1)[:own]
    return values, Span(start, torch.Size(parameter.ds_shape), group)


def _assign(parameter: Any, whole: Tensor) -> None:
    if not hasattr(parameter, "ds_id"):
        parameter.copy_(whole)
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        if torch.distributed.get_rank() == 0:
            parameter.copy_(whole)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
