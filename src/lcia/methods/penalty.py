"""The quadratic penalty on leaving where training started."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class QuadraticPenalty:
    """strength / 2 * sum over i of F_i (theta_i - theta_old_i)^2, theta_old as it is now.

    Args:
        parameters: by name; their values now are theta_old.
        strength: lambda.
        precision: F by name, of the parameters' shapes; None for 1.
    """

    def __init__(
        self,
        parameters: Mapping[str, Any],
        *,
        strength: float,
        precision: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._parameters = list(parameters.values())
        self._strength = strength
        self._old = self._flat().detach()
        self._precision = None
        if precision is not None:
            ordered = [precision[name].reshape(-1) for name in parameters]
            self._precision = torch.cat(ordered).to(self._old)

    def __call__(self) -> Tensor:
        """Return the penalty, a scalar with a gradient."""
        # One vector: hundreds of small tensors would cost more in calls than in arithmetic.
        squares = (self._flat() - self._old).square()
        if self._precision is not None:
            squares = squares * self._precision
        return self._strength / 2 * squares.sum()

    def _flat(self) -> Tensor:
        return torch.cat([p.reshape(-1) for p in self._parameters])
