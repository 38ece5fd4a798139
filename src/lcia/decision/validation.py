"""Training samples that are held back from training, to choose by what a group becomes."""

import math
import random
from dataclasses import replace

from lcia.data.sample import Sample
from lcia.data.task import Task

MOST, AIM, FEWEST = 64, 16, 8
"""How many samples of a task are held back: at most, at least if that is no more than a fifth of
the task, and so few that nothing can be measured by them."""


def hold_back(task: Task, share: float, *, seed: int) -> tuple[Task, tuple[Sample, ...]]:
    """Return the task with fewer training samples, and the others; its test samples stay.

    Args:
        task: the task.
        share: of its training samples, in [0, 1], rounded up. More where that is fewer than
            ``AIM``: up to a fifth of the samples. At most ``MOST``.
        seed: draws them.

    Returns:
        The task itself and nothing if ``share`` is 0, if fewer than ``FEWEST`` would be held back,
        or if they would be more than half of the task.
    """
    samples = len(task.train)
    count = min(MOST, max(math.ceil(share * samples), min(AIM, samples // 5)))
    if share <= 0 or count < FEWEST or 2 * count > samples:
        return task, ()
    drawn = set(random.Random(f"validation {seed}").sample(range(len(task.train)), count))
    kept = tuple(sample for i, sample in enumerate(task.train) if i not in drawn)
    return replace(task, train=kept), tuple(task.train[i] for i in sorted(drawn))
