"""Large Continual Instruction Assistant: dynamic EMA over grouped adapters."""

from typing import Any, ClassVar

from lcia.integrations.transformers import DynamicEMACallback
from lcia.methods.base import Method, TaskContext


class Lcia(Method):
    """The paper's method: tasks grouped by instruction, reused adapters averaged by dynamic EMA.

    A group that a task opens has nothing to protect and is trained plainly. A group that is
    retrained starts with the average at its stored parameters, and ends as the average.

    Source: arXiv:2410.10868. Differs: the released code starts the average after the first step
    of every task.
    """

    groupings: ClassVar[tuple[str, ...]] = ("similar", "one", "per_task")
    averages: ClassVar[bool] = True

    def attach(self, trainer: Any, context: TaskContext) -> None:
        """Average dynamically where there is something to protect."""
        if context.reused:
            DynamicEMACallback(rule=self.rule).attach(trainer)
