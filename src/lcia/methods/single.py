"""An adapter for each task: the ceiling without sharing."""

from typing import ClassVar

from lcia.methods.base import Method


class Single(Method):
    """A LoRA adapter for each task, trained plainly; samples go to that of their task.

    No task can disturb another, none can help another, and the task's identity is given.
    """

    groupings: ClassVar[tuple[str, ...]] = ("per_task",)
    task_given: ClassVar[bool] = True
