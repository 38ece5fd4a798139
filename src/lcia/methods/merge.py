"""Precision-weighted merging at the end of a task, over grouped adapters."""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from lcia.integrations.transformers import PrecisionMergeCallback
from lcia.methods.base import Method, TaskContext

logger = logging.getLogger(__name__)


class Merge(Method):
    """Train plainly, then move each element towards the new task as far as its precision allows.

    theta* = theta_old + w (theta - theta_old), w = F_new / (F_new + lambda F_old), F the summed
    squared gradients of a task, scaled to sum 1. The sums travel with the group.

    Source: ``lcia.ema.PrecisionMerge``.
    """

    groupings: ClassVar[tuple[str, ...]] = ("similar", "one", "per_task")
    settings: ClassVar[dict[str, Any]] = {"old_weight": 0.3}

    def attach(self, trainer: Any, context: TaskContext) -> None:
        """Sum squared gradients from the first task of a group on; merge from the second on."""
        if context.reused and not context.carried:
            logger.warning(
                "group %s: no precision of its earlier tasks is stored, so nothing of them is "
                "protected by merging.",
                context.group,
            )
        self._add(trainer, context, theta_old=start_of(context) if context.reused else None)

    def _add(
        self, trainer: Any, context: TaskContext, *, theta_old: Mapping[str, Any] | None
    ) -> None:
        self._callback = PrecisionMergeCallback(
            theta_old=theta_old,
            old_weight=self.config["old_weight"],
            precision_old=context.carried or None,
        )
        trainer.add_callback(self._callback)

    def finish(self, context: TaskContext) -> Mapping[str, Any]:
        """Carry on the summed precision; a group that is new starts with this task's."""
        return self._callback.precision(alone=not context.reused)


def start_of(context: TaskContext) -> dict[str, Any]:
    """Return a copy of the parameters that training starts from, by name."""
    return {name: p.detach().clone() for name, p in context.parameters.items()}
