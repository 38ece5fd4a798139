"""Plain EMA with one constant balance weight: the baseline of dynamic EMA."""

from typing import Any, ClassVar

from lcia.integrations.transformers import DynamicEMACallback
from lcia.methods.base import Method, TaskContext


class FixedEMA(Method):
    """One adapter for all tasks, averaged with a constant weight ``beta`` of the old average."""

    settings: ClassVar[dict[str, Any]] = {"beta": 0.99}

    def attach(self, trainer: Any, context: TaskContext) -> None:
        """Average with a constant weight where there is something to protect."""
        if context.reused:
            rule = {"name": "fixed", "beta": self.config["beta"]}
            DynamicEMACallback(rule=rule).attach(trainer)
