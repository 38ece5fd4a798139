"""Training samples that are held back from training, to choose by what a group becomes."""

import math
import random
from dataclasses import replace

from lcia.data.sample import Sample
from lcia.data.task import Task

MOST, LEAST = 64, 2
"""How many of a task are held back, if any: two for a standard error."""


def hold_back(task: Task, share: float, *, seed: int) -> tuple[Task, tuple[Sample, ...]]:
    """Return the task with fewer training samples, and the others; its test samples stay.

    Args:
        task: the task.
        share: of its training samples, in [0, 1], rounded up; at most ``MOST``.
        seed: draws them.

    Returns:
        The task itself and nothing if ``share`` is 0, or if the task has less than twice as many
        samples as would be held back.
    """
    count = min(MOST, max(LEAST, math.ceil(share * len(task.train))))
    if share <= 0 or 2 * count > len(task.train):
        return task, ()
    drawn = set(random.Random(f"validation {seed}").sample(range(len(task.train)), count))
    kept = tuple(sample for i, sample in enumerate(task.train) if i not in drawn)
    return replace(task, train=kept), tuple(task.train[i] for i in sorted(drawn))
