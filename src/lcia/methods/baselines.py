"""What every method is compared with.

Plain training one task after another, an adapter a task, all tasks at once, the base model as it
is, and plain EMA.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lcia.data.sample import Sample
from lcia.integrations.transformers import DynamicEMACallback
from lcia.methods.base import Method, TaskContext


class Sequential(Method):
    """One LoRA adapter trained on one task after another, nothing protected."""


class Single(Method):
    """A LoRA adapter for each task, trained plainly; samples go to that of their task.

    No task can disturb another, none can help another, and the task's identity is given.
    """

    groupings: ClassVar[tuple[str, ...]] = ("per_task",)
    task_given: ClassVar[bool] = True

    def open(self, host: Any, start: Path | None, adapter: Mapping[str, Any]) -> Any:
        """Start from a fresh adapter, whatever was learned before."""
        return super().open(host, None, adapter)


class ZeroShot(Method):
    """Nothing is trained: every task leaves a fresh adapter, whose B = 0, so the base answers."""

    trains: ClassVar[bool] = False


class Multitask(Method):
    """One fresh LoRA adapter trained on the shuffled union of all tasks so far, epochs alike.

    A stream's tasks are gathered, and trained when the last one comes; taught one by one, each
    task trains anew on all before it. The training samples of every task are kept.
    """

    groupings: ClassVar[tuple[str, ...]] = ("one",)
    joint: ClassVar[bool] = True

    def open(self, host: Any, start: Path | None, adapter: Mapping[str, Any]) -> Any:
        """Start from a fresh adapter, whatever was learned before."""
        return super().open(host, None, adapter)

    def samples(self, context: TaskContext) -> Sequence[Sample]:
        """Train on the union."""
        return [*context.remembered, *context.task.train]

    def remember(self, context: TaskContext) -> Sequence[Sample]:
        """Keep the union."""
        return self.samples(context)


class FixedEMA(Method):
    """One adapter for all tasks, averaged with a constant weight ``beta`` of the old average."""

    settings: ClassVar[dict[str, Any]] = {"beta": 0.99}

    def attach(self, trainer: Any, context: TaskContext) -> None:
        """Average with a constant weight where there is something to protect."""
        if context.reused:
            rule = {"name": "fixed", "beta": self.config["beta"]}
            DynamicEMACallback(rule=rule).attach(trainer)
