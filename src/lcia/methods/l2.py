"""L2 towards the parameters before the task: the plainest regulariser."""

from collections.abc import Mapping
from typing import Any, ClassVar

from lcia.methods.base import Method, TaskContext
from lcia.methods.penalty import QuadraticPenalty


class L2(Method):
    """Adds lambda / 2 * |theta - theta_old|^2, theta_old being the adapter before the task."""

    sharded: ClassVar[bool] = False
    settings: ClassVar[dict[str, Any]] = {"strength": 0.1}

    def attach(self, trainer: Any, context: TaskContext) -> None:
        """Remember where training starts, if there is something to protect."""
        self._penalty = None
        if context.reused:
            strength = self.config["strength"]
            self._penalty = QuadraticPenalty(context.parameters, strength=strength)

    def extra_loss(self, model: Any, inputs: Mapping[str, Any], outputs: Any) -> Any | None:
        """Return the penalty."""
        return self._penalty() if self._penalty is not None else None
