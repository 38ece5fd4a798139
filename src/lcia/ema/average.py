"""DynamicEMA: a moving average of parameters whose weight is computed at every step."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lcia.ema import fused as kernels
from lcia.ema.balance import STEP_L1, Rule, build_rule
from lcia.ema.gradients import PreviousGradients
from lcia.ema.record import EMAStats, decide, read, summarise
from lcia.ema.reduce import TERMS, Operands, blend, move, new_scratch
from lcia.ema.sharding import Shards, local, without_ties
from lcia.errors import TrainingError

logger = logging.getLogger(__name__)

# Steps whose figures wait on the device before they are read together.
_PENDING_STEPS = 256


class DynamicEMA:
    """theta* <- beta theta* + (1 - beta) theta, with beta per tensor and step by a rule.

    Call ``update()`` after ``optimizer.step()`` and before gradients are cleared. The average
    is kept in float32 (float64 for float64 parameters) on each parameter's device.

    Args:
        named_parameters: names and parameters, as ``model.named_parameters()`` gives them. Those
            that require gradients take part; one unfrozen later joins at its first update.
            A tied parameter takes part once, under its first name.
        rule: a rule, its name, or a mapping such as ``{"name": "release", "scale": 2.0}``.
        initial: values theta* starts from, by name; those not named start from the parameters.
        shards: how parameters are spread over ranks; by default plain tensors and FSDP2.
        fused: whether compiled kernels do the work where the rule has them; by default on CUDA
            with Triton. On a CPU they take seconds to compile and gain little.

    Attributes:
        shadow: the average theta*, name to tensor; the rank's own part where parameters are
            sharded.
        rule: the balance rule.

    Raises:
        ConfigError: the rule is unknown or a setting is out of range.
        TrainingError: no parameter requires a gradient, or ``initial`` does not fit.

    Source: LCIA (arXiv:2410.10868).
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        *,
        rule: Rule | Mapping[str, Any] | str = "release",
        initial: Mapping[str, Tensor] | None = None,
        shards: Shards | None = None,
        fused: bool | None = None,
    ) -> None:
        self.rule = build_rule(rule).for_training()
        self._fused = fused
        self._shards = shards or Shards()
        self._parameters = without_ties(named_parameters)
        self._theta_prev: dict[str, Tensor] = {}
        self._theta_before: dict[str, Tensor] = {}
        self._step_l1: dict[str, Tensor] = {}
        self._grad_prev = PreviousGradients()
        self._stats = EMAStats()
        self._recent = EMAStats()
        self._pending: list[Tensor] = []
        self._last: EMAStats | None = None
        self._swapped = False
        self._scratches: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self.shadow: dict[str, Tensor] = {}
        self._join()
        if not self.shadow:
            raise TrainingError("DynamicEMA: no parameter requires a gradient; nothing to average.")
        self.assign(initial or {})

    def assign(self, theta_ema: Mapping[str, Tensor]) -> None:
        """Give theta* the values of full tensors, by name; those not named stay.

        Raises:
            TrainingError: names or shapes do not fit the parameters.
        """
        for name, values in theta_ema.items():
            self._set(name, values)

    @torch.no_grad()
    def update(self) -> None:
        """Move theta* after an optimizer step, by the gradients that step used.

        A tensor without a gradient was not stepped and keeps its average.

        Raises:
            TrainingError: no parameter has a gradient, or ``swapped()`` is open.
        """
        if self._swapped:
            raise TrainingError("DynamicEMA.update() inside swapped(): the parameters are theta*.")
        joined = self._join()
        names = self._with_gradients()
        without_gradient = len(self.shadow) - len(names)
        known = torch.tensor([name not in joined and self._is_known(name) for name in names])
        sums = self._sums(names, joined)
        step = int(self._stats.steps) + len(self._pending) + 1
        decision = decide(self.rule, sums, known=known.to(sums["drift_l1"].device), step=step)
        self._blend(names, decision.gain)
        self._remember(names, joined)
        figures = summarise(decision, sums["drift_l1"], without_gradient=without_gradient)
        self._pending.append(figures)
        if figures.device.type == "cpu" or len(self._pending) >= _PENDING_STEPS:
            self._read_pending()

    def attach(self, optimizer: Optimizer) -> RemovableHandle:
        """Update after every step of a torch optimizer, until the handle's ``remove()``.

        A step that a gradient scaler skips does not update: the scaler either does not call the
        optimizer, or calls a fused one with the infinities it found.
        """
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps the real one

        def after_step(stepped: Optimizer, args: Any, kwargs: Any) -> None:
            if not overflowed(stepped):
                self.update()

        return inner.register_step_post_hook(after_step)

    def copy_to_parameters(self) -> None:
        """Make the parameters theta*, as at the end of a task."""
        with torch.no_grad():
            for name, values in self.shadow.items():
                local(self._parameters[name]).copy_(values)
        self._shards.propagate()

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Give the parameters the values of theta* inside a ``with`` block, to evaluate or save."""
        if self._swapped:
            raise TrainingError("DynamicEMA.swapped() is already open.")
        theta = {name: local(self._parameters[name]).detach().clone() for name in self.shadow}
        self.copy_to_parameters()
        self._swapped = True
        try:
            yield
        finally:
            self._swapped = False
            with torch.no_grad():
                for name, values in theta.items():
                    local(self._parameters[name]).copy_(values)
            self._shards.propagate()

    def stats(self) -> EMAStats:
        """Return balance weights and fallbacks over all updates; waits for the device."""
        self._read_pending()
        return self._stats

    def recent_stats(self) -> EMAStats:
        """Return balance weights and fallbacks since this was called before; waits likewise."""
        self._read_pending()
        recent, self._recent = self._recent, EMAStats()
        return recent

    def last_step(self) -> EMAStats:
        """Return balance weights and fallbacks of the last update; waits for the device.

        Raises:
            TrainingError: there was no update yet.
        """
        self._read_pending()
        if self._last is None:
            raise TrainingError("DynamicEMA.last_step(): update() was not called yet.")
        return self._last

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes during a run, as full tensors by group and name.

        Collective where parameters are sharded: every rank calls it and gets the same.
        The tensors may share memory with the average; clone them to keep them past an update.
        """
        self._read_pending()
        groups = {
            "shadow": self.shadow,
            "grad_prev": self._grad_prev.state(),
            "theta_prev": self._theta_prev,
            "theta_before": self._theta_before,
        }
        state: dict[str, Any] = {
            group: {n: self._full(n, v) for n, v in sorted(tensors.items())}
            for group, tensors in groups.items()
        }
        # Norms of whole tensors, the same on every rank.
        state[STEP_L1] = {name: norm.clone() for name, norm in sorted(self._step_l1.items())}
        return {**state, "stats": self._stats.as_tensor()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a ``state_dict()`` of any world size, to the bit on the same one.

        Raises:
            TrainingError: names or shapes do not fit the parameters, or the rule needs steps
                that the state does not hold.
        """
        kept = {"theta_before": self.rule.needs_previous_step, STEP_L1: self._keeps_step_l1}
        if missing := [group for group, needed in kept.items() if needed and group not in state]:
            raise TrainingError(
                f"DynamicEMA.load_state_dict: the state has no '{missing[0]}', which rule "
                f"'{type(self.rule).__name__.lower()}' needs: it was saved by an earlier lcia."
            )
        for name in self.shadow:
            if name not in state["shadow"]:
                raise TrainingError(f"DynamicEMA.load_state_dict: the state has no '{name}'.")
        self.assign(state["shadow"])
        self._grad_prev.load({n: self._part(n, v) for n, v in state["grad_prev"].items()})
        for group, own in (("theta_prev", self._theta_prev), ("theta_before", self._theta_before)):
            own.clear()
            own.update({n: self._part(n, v).clone() for n, v in state.get(group, {}).items()})
        self._step_l1 = {
            n: v.to(self.shadow[n].device, copy=True) for n, v in state.get(STEP_L1, {}).items()
        }
        self._stats = read(state["stats"].tolist())
        self._recent = EMAStats()
        self._pending.clear()
        self._last = None

    def _join(self) -> set[str]:
        """Start averaging every parameter that now requires gradients; return the new names."""
        new = [n for n, p in self._parameters.items() if p.requires_grad and n not in self.shadow]
        for name in new:
            theta = local(self._parameters[name]).detach()
            self.shadow[name] = _new_average(theta, like=theta)
            if self.rule.needs_previous_parameters:
                self._theta_prev[name] = theta.clone()
        return set(new)

    def _with_gradients(self) -> list[str]:
        if not self.rule.needs_gradients:
            return list(self.shadow)
        names = [name for name in self.shadow if self._parameters[name].grad is not None]
        if not names:
            raise TrainingError(
                f"DynamicEMA.update(): all {len(self.shadow)} gradients are None, so rule "
                f"'{type(self.rule).__name__.lower()}' has nothing to compute beta from. Call "
                "update() after optimizer.step() and before zero_grad(); under DeepSpeed, which "
                "clears gradients inside backward, use lcia.integrations.deepspeed."
            )
        return names

    @property
    def _keeps_step_l1(self) -> bool:
        return STEP_L1 in self.rule.terms

    def _sums(self, names: list[str], joined: set[str]) -> dict[str, Tensor]:
        terms = tuple(dict.fromkeys((*self.rule.terms, "drift_l1")))
        operands = [self._operands(name) for name in names]
        if self._uses_kernels(names):
            sums = torch.stack([kernels.sums(x, terms) for x in operands])
        else:
            sums = torch.stack([self._eager_sums(x, terms) for x in operands])
        self._shards.share_sums(sums, [self._parameters[name] for name in names])
        found = dict(zip(terms, sums.unbind(dim=1), strict=True))
        if self._keeps_step_l1:
            found[STEP_L1] = self._previous_step_l1(names, joined, last=found[STEP_L1])
        return found

    def _previous_step_l1(self, names: list[str], joined: set[str], *, last: Tensor) -> Tensor:
        """Return the norms of the steps before the last, and keep the last ones'."""
        zero = last.new_zeros(())
        previous = torch.stack([self._step_l1.get(name, zero) for name in names])
        # Where the last step of a tensor that joins now began was not seen.
        lasts = dict(zip(names, last.unbind(), strict=True))
        self._step_l1 |= {name: norm for name, norm in lasts.items() if name not in joined}
        return previous

    def _eager_sums(self, x: Operands, terms: tuple[str, ...]) -> Tensor:
        scratch = self._scratch(x.theta_ema)
        return torch.stack([TERMS[term](x, scratch) for term in terms])

    def _operands(self, name: str) -> Operands:
        parameter, grad = self._parameters[name], self._parameters[name].grad
        grad_prev = self._grad_prev.get(name, grad) if self.rule.needs_gradients else None
        theta_prev, theta_before = self._theta_prev.get(name), self._theta_before.get(name)
        return Operands(
            theta=local(parameter).detach().reshape(-1),
            theta_ema=self.shadow[name].reshape(-1),
            grad=None if grad is None else local(grad).reshape(-1),
            grad_prev=None if grad_prev is None else grad_prev.reshape(-1),
            theta_prev=None if theta_prev is None else theta_prev.reshape(-1),
            theta_before=None if theta_before is None else theta_before.reshape(-1),
        )

    def _scratch(self, like: Tensor) -> Tensor:
        kind = (like.dtype, like.device)
        if kind not in self._scratches:
            largest = max(v.numel() for v in self.shadow.values() if (v.dtype, v.device) == kind)
            self._scratches[kind] = new_scratch(like, largest=largest)
        return self._scratches[kind]

    def _is_known(self, name: str) -> bool:
        has_step = not self._keeps_step_l1 or name in self._step_l1
        has_before = not self.rule.needs_previous_step or name in self._theta_before
        return has_step and has_before and self._grad_prev.get(name, None) is not None

    def _blend(self, names: list[str], gain: Tensor) -> None:
        pairs = [
            (self.shadow[name].view(-1), local(self._parameters[name]).detach().reshape(-1))
            for name in names
        ]
        if gain.device.type == "cpu" and not self._uses_kernels(names):
            for (theta_ema, theta), weight in zip(pairs, gain.tolist(), strict=True):
                if weight > 0:  # 0 times a parameter that is not finite would not be 0
                    move(theta_ema, theta, weight, self._scratch(theta_ema))
            return
        # On a device the gains stay there: reading them would make the host wait.
        blend_on_device = kernels.blend if self._uses_kernels(names) else blend
        for (theta_ema, theta), weight in zip(pairs, gain.unbind(), strict=True):
            blend_on_device(theta_ema, theta, weight)

    def _uses_kernels(self, names: list[str]) -> bool:
        if self._fused is None:
            return kernels.is_available(self.rule.terms, self.shadow[names[0]].device)
        return self._fused and kernels.can_compute(self.rule.terms)

    def _remember(self, names: list[str], joined: set[str]) -> None:
        for name in names:
            parameter = self._parameters[name]
            if self.rule.needs_gradients and parameter.grad is not None:
                self._grad_prev.keep(name, parameter.grad)
            if not self.rule.needs_previous_parameters or name in joined:
                continue
            if self.rule.needs_previous_step:  # the older of the two makes room for the newest
                newest, last = self._theta_before.get(name), self._theta_prev[name]
                self._theta_prev[name] = torch.empty_like(last) if newest is None else newest
                self._theta_before[name] = last
            self._theta_prev[name].copy_(local(parameter))

    def _read_pending(self) -> None:
        if not self._pending:
            return
        steps = [read(vector) for vector in torch.stack(self._pending).tolist()]
        self._pending.clear()
        self._last = steps[-1]
        before = self._stats.counts["not_finite"]
        self._stats = sum(steps, start=self._stats)
        self._recent = sum(steps, start=self._recent)
        bad = self._stats.counts["not_finite"] - before
        if bad:
            logger.warning(
                "dynamic EMA: %d tensor updates up to step %d met NaN or infinite values; those "
                "tensors kept their average. Lower the learning rate or clip gradients.",
                bad,
                self._stats.steps,
            )

    def _set(self, name: str, values: Tensor) -> None:
        parameter = self._parameters.get(name)
        shape = None if parameter is None else self._shards.shape(parameter)
        if parameter is None or shape != values.shape:
            found = "no such parameter" if shape is None else f"shape {tuple(shape)}"
            raise TrainingError(
                f"DynamicEMA: values given for '{name}' have shape {tuple(values.shape)}; the "
                f"model has {found}."
            )
        self.shadow[name] = _new_average(self._part(name, values), like=parameter)

    def _full(self, name: str, values: Tensor) -> Tensor:
        return self._shards.full(values, like=self._parameters[name])

    def _part(self, name: str, values: Tensor) -> Tensor:
        return self._shards.part(values, like=self._parameters[name])


def overflowed(optimizer: Optimizer) -> bool:
    """Return whether the step just taken was none, as its scaled fp16 gradients overflowed.

    A gradient scaler does not call other optimizers then, but a fused one it always calls: that
    one looks for infinities itself. To be asked in a post-step hook, for the scaler deletes what
    it told the optimizer right after.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)


def _new_average(values: Tensor, *, like: Tensor) -> Tensor:
    dtype = torch.promote_types(like.dtype, torch.float32)
    return values.to(dtype, copy=True, memory_format=torch.contiguous_format)
