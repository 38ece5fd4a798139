"""Experience replay: a few old samples among the new ones."""

import random
from collections.abc import Sequence
from typing import Any, ClassVar

from lcia.data.sample import Sample
from lcia.methods.base import Method, TaskContext


class Replay(Method):
    """``per_task`` samples of every earlier task, drawn by seed, are shuffled among the new ones.

    Source: experience replay as in arXiv:1902.10486; here the remembered samples are a part
    of the training set instead of a second batch, so each step sees its share of them.
    """

    settings: ClassVar[dict[str, Any]] = {"per_task": 20}

    def samples(self, context: TaskContext) -> Sequence[Sample]:
        """Train on the task and what is remembered."""
        return with_remembered(context)

    def remember(self, context: TaskContext) -> Sequence[Sample]:
        """Keep what is remembered and a quota of the task."""
        return [*context.remembered, *quota(context, self.config["per_task"])]


def with_remembered(context: TaskContext) -> list[Sample]:
    """Return the task's training samples and those that its group remembers."""
    return [*context.task.train, *context.remembered]


def quota(context: TaskContext, count: int) -> list[Sample]:
    """Return ``count`` training samples of the task, or all if it has fewer; drawn by its seed.

    Validation samples are left out: trained on again, they would hide what is forgotten.
    Of corrections all stay, unless none may: the next one is not to undo them.
    """
    held = set(map(id, context.held))
    train = [sample for sample in context.task.train if id(sample) not in held]
    if count and context.task.corrects:
        return train
    return random.Random(context.seed).sample(train, min(count, len(train)))
