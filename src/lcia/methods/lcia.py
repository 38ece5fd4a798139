"""Large Continual Instruction Assistant: dynamic EMA over grouped adapters, merged by precision."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lcia.data.sample import Sample
from lcia.errors import ConfigError
from lcia.integrations.transformers import DynamicEMACallback
from lcia.methods.base import TaskContext
from lcia.methods.merge import Merge
from lcia.methods.replay import quota, with_memory


class Lcia(Merge):
    """Tasks grouped by instruction, reused adapters averaged by dynamic EMA, merged, replayed.

    A group that a task opens has nothing to protect and is trained plainly. A group that is
    retrained starts with the average at its stored parameters, and ends as the average. With an
    ``old_weight`` above 0 that average is then merged into the stored parameters by precision, as
    ``merge`` does with the trained ones. ``memory`` is the share of every task's samples that stay
    with its group, and are shuffled among the new ones when it is retrained. docs/study.md has the
    measurements behind the defaults.

    Source: arXiv:2410.10868, taken further. ``lcia_paper`` and ``lcia_release`` are what was
    published.
    """

    averages: ClassVar[bool] = True
    settings: ClassVar[dict[str, Any]] = {"old_weight": 0.3, "memory": 0.125}

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if self.config["memory"] > 1:
            raise ConfigError(
                f"method.memory is {self.config['memory']!r}; expected a share of each task's "
                "samples, from 0 to 1."
            )

    def samples(self, context: TaskContext) -> Sequence[Sample]:
        """Train on the task and the group's memory."""
        return with_memory(context)

    def remember(self, context: TaskContext) -> Sequence[Sample]:
        """Keep the memory and a share of the task."""
        count = math.ceil(self.config["memory"] * len(context.task.train))
        return [*context.memory, *quota(context, count)]

    def attach(self, trainer: Any, context: TaskContext) -> None:
        """Average dynamically where there is something to protect; merge the average."""
        if context.reused:
            DynamicEMACallback(rule=self.rule).attach(trainer)
        if self.config["old_weight"] > 0:
            super().attach(trainer, context)

    def finish(self, context: TaskContext) -> Mapping[str, Any]:
        """Carry on the summed precision, if it is used."""
        return super().finish(context) if self.config["old_weight"] > 0 else {}
