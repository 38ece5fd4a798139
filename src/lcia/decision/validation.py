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

    A task that opens a group may train on the others as well: see ``taught_too``.

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


def taught_too(lesson: Task, task: Task, held: tuple[Sample, ...], share: float) -> Task:
    """Return the lesson of a task that opens a group: with a share of the held-back samples.

    There is nothing to choose yet. What these samples tell later of forgetting was trained on, so a
    fall looks larger than it is: the choice errs on the side of the earlier task.

    Args:
        lesson: the task without its held-back samples.
        task: the whole task; its order is kept.
        held: the held-back samples.
        share: of them that is trained on, in [0, 1].
    """
    left = set(map(id, held[round(share * len(held)) :]))
    train = tuple(sample for sample in task.train if id(sample) not in left)
    return replace(lesson, train=train)
