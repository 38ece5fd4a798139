"""Large Continual Instruction Assistant: dynamic EMA over grouped adapters, merged by precision."""

from collections.abc import Mapping
from typing import Any, ClassVar

from lcia.integrations.transformers import DynamicEMACallback
from lcia.methods.base import TaskContext
from lcia.methods.merge import Merge


class Lcia(Merge):
    """The paper's method: tasks grouped by instruction, reused adapters averaged by dynamic EMA.

    A group that a task opens has nothing to protect and is trained plainly. A group that is
    retrained starts with the average at its stored parameters, and ends as the average. With an
    ``old_weight`` above 0 that average is then merged into the stored parameters by precision, as
    ``merge`` does with the trained ones; 0 with rule ``paper`` or ``release`` is the paper's
    method. docs/study.md has the measurements behind the defaults.

    Source: arXiv:2410.10868. Differs: the released code starts the average after the first step
    of every task.
    """

    averages: ClassVar[bool] = True
    settings: ClassVar[dict[str, Any]] = {"old_weight": 0.3}

    def attach(self, trainer: Any, context: TaskContext) -> None:
        """Average dynamically where there is something to protect; merge the average."""
        if context.reused:
            DynamicEMACallback(rule=self.rule).attach(trainer)
        if self.config["old_weight"] > 0:
            super().attach(trainer, context)

    def finish(self, context: TaskContext) -> Mapping[str, Any]:
        """Carry on the summed precision, if it is used."""
        return super().finish(context) if self.config["old_weight"] > 0 else {}
