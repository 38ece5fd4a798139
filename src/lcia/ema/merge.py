"""Merging the parameters of a finished task into those before it, weighted by precision."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from lcia.ema.sharding import Shards, local, without_ties
from lcia.errors import ConfigError, TrainingError


class PrecisionMerge:
    """theta* = theta_old + w (theta - theta_old), w = F_new / (F_new + F_old), per element.

    F_new is the sum of squared gradients over a task's optimizer steps, scaled so that all its
    elements add up to 1: tasks count alike whatever their length and loss. F_old is
    ``old_weight`` times the sum of the F of all earlier tasks. An element that neither knows
    takes the new value.

    Call ``accumulate()`` after every optimizer step, before gradients are cleared; at the end of
    the task ``merge(theta_old)``, and store ``precision()`` for the task after it.

    Args:
        named_parameters: names and parameters; those that require gradients take part.
        old_weight: lambda > 0, how much an earlier task counts against the new one.
        precision_old: ``precision()`` of the task before; None at the first task.
        shards: how parameters are spread over ranks; by default plain tensors and FSDP2.

    Raises:
        ConfigError: ``old_weight`` is not positive.
        TrainingError: ``precision_old`` lacks a parameter.

    Source: a diagonal Laplace approximation, as in EWC (arXiv:1612.00796) and Fisher merging
        (arXiv:2111.09832).
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        *,
        old_weight: float = 0.1,
        precision_old: Mapping[str, Tensor] | None = None,
        shards: Shards | None = None,
    ) -> None:
        if not old_weight > 0:
            raise ConfigError(f"old_weight is {old_weight!r}; expected a number above 0.")
        self._old_weight = old_weight
        self._shards = shards or Shards()
        self._parameters = {
            n: p for n, p in without_ties(named_parameters).items() if p.requires_grad
        }
        self._squares = {n: self._zeros(p) for n, p in self._parameters.items()}
        self._old = self._load(precision_old, "precision_old") if precision_old else None

    @torch.no_grad()
    def accumulate(self) -> None:
        """Add the squared gradients of the step just taken.

        Raises:
            TrainingError: no parameter has a gradient.
        """
        graded = [(n, p.grad) for n, p in self._parameters.items() if p.grad is not None]
        if not graded:
            raise TrainingError(
                "PrecisionMerge.accumulate(): all gradients are None; call it after "
                "optimizer.step() and before zero_grad(). DeepSpeed clears them inside backward: "
                "use lcia.integrations.DeepSpeedMerge there."
            )
        for name, grad in graded:
            values = local(grad).to(self._squares[name].dtype)
            self._squares[name].addcmul_(values, values)

    @torch.no_grad()
    def merge(self, theta_old: Mapping[str, Tensor]) -> None:
        """Make the parameters the merge of their values now and ``theta_old``, by name.

        Raises:
            TrainingError: ``theta_old`` lacks a parameter, or nothing was accumulated, or values
                that are not finite.
        """
        old = self._load(theta_old, "theta_old")
        for name, weight in self.weights(self._old_weight).items():
            theta = local(self._parameters[name])
            theta.copy_(torch.lerp(old[name], theta.to(weight.dtype), weight))
        self._shards.propagate()

    @torch.no_grad()
    def weights(self, old_weight: float) -> dict[str, Tensor]:
        """Return w of each element by name, the rank's own part, for a lambda of one's own."""
        new = self._scaled()
        found = {name: torch.ones_like(values) for name, values in new.items()}
        for name, old in (self._old or {}).items():
            total = new[name] + old_weight * old
            found[name] = torch.where(total > 0, new[name] / total, found[name])
        return found

    @torch.no_grad()
    def precision(self, *, alone: bool = False) -> dict[str, Tensor]:
        """Return the sum of the scaled F of all tasks so far, full tensors by name.

        Args:
            alone: leave the earlier tasks out.
        """
        total = self._scaled()
        for name, values in ({} if alone else self._old or {}).items():
            total[name] += values
        return {name: self._full(name, values) for name, values in total.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the squared gradients accumulated so far, full tensors by name."""
        return {name: self._full(name, v.clone()) for name, v in self._squares.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a ``state_dict()``.

        Raises:
            TrainingError: the state lacks a parameter.
        """
        self._squares = self._load(state, "the state")

    def _scaled(self) -> dict[str, Tensor]:
        sums = torch.stack([squares.sum().reshape(1) for squares in self._squares.values()])
        self._shards.share_sums(sums, list(self._parameters.values()))
        total = sums.sum()
        if not total.isfinite():
            raise TrainingError(
                "PrecisionMerge: the sum of squared gradients is not finite. Leave out the steps "
                "that fp16 loss scaling skips (optimizer.step_was_skipped), or clip gradients."
            )
        if not total > 0:
            raise TrainingError("PrecisionMerge: no squared gradients; call accumulate() first.")
        return {name: squares / total for name, squares in self._squares.items()}

    def _load(self, tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
        missing = [name for name in self._parameters if name not in tensors]
        if missing:
            raise TrainingError(f"PrecisionMerge: {what} has no '{missing[0]}'.")
        return {
            name: self._shards.part(tensors[name], like=p).to(self._squares[name].dtype, copy=True)
            for name, p in self._parameters.items()
        }

    def _full(self, name: str, values: Tensor) -> Tensor:
        return self._shards.full(values, like=self._parameters[name])

    @staticmethod
    def _zeros(parameter: Tensor) -> Tensor:
        values = local(parameter).detach()
        return torch.zeros_like(values, dtype=torch.promote_types(values.dtype, torch.float32))
