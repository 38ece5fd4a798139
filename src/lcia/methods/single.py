"""An adapter for each task: the ceiling without sharing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lcia.methods.base import Method


class Single(Method):
    """A LoRA adapter for each task, trained plainly; samples go to that of their task.

    No task can disturb another, none can help another, and the task's identity is given.
    """

    groupings: ClassVar[tuple[str, ...]] = ("per_task",)
    task_given: ClassVar[bool] = True

    def open(self, host: Any, start: Path | None, adapter: Mapping[str, Any]) -> Any:
        """Start from a fresh adapter, whatever was learned before."""
        return super().open(host, None, adapter)
