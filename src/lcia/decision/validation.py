"""Training samples that are held back from training, to choose by what a group becomes."""

import math
import random
from dataclasses import replace

from lcia.data.sample import Sample
from lcia.data.task import Task

MOST, LEAST, PART = 64, 8, 5
"""How many samples of a task are held back at most and at least; a task of which the least would be
more than one in ``PART`` holds none back."""


def hold_back(task: Task, share: float, *, seed: int) -> tuple[Task, tuple[Sample, ...]]:
    """Return the task with fewer training samples, and the others; its test samples stay.

    Args:
        task: the task.
        share: of its training samples, in [0, 1], rounded up; at least ``LEAST``, at most ``MOST``.
        seed: draws them.

    Returns:
        The task itself and nothing if ``share`` is 0, if the task is too small to hold back
        ``LEAST``, or if more than half of it would be held back.
    """
    samples = len(task.train)
    count = min(MOST, max(LEAST, math.ceil(share * samples)))
    if share <= 0 or samples < PART * LEAST or 2 * count > samples:
        return task, ()
    drawn = set(random.Random(f"validation {seed}").sample(range(len(task.train)), count))
    kept = tuple(sample for i, sample in enumerate(task.train) if i not in drawn)
    return replace(task, train=kept), tuple(task.train[i] for i in sorted(drawn))
