"""All tasks at once: what learning one after another is measured against."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lcia.data.sample import Sample
from lcia.methods.base import Method, TaskContext


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
