"""What a continual-learning method may change about plain training."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lcia.errors import ConfigError
from lcia.registry import nearest


@dataclass(kw_only=True)
class TaskContext:
    """What a method sees of the task being learned.

    Attributes:
        task: name of the task.
        task_index: how many tasks the assistant learned before this one.
        group: id of the adapter group that is trained.
        reused: whether the group existed before: only then is there something to protect.
        parameters: the trainable parameters by name, float32.
        carried: tensors the method left for this group after its last task, by name.
        seed: seed of this task.
    """

    task: str
    task_index: int
    group: str
    reused: bool
    parameters: Mapping[str, Any]
    carried: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


class Method:
    """Plain training; a subclass overrides what differs.

    Args:
        rule: balance rule of methods that average, as a mapping with its ``name``.
        **settings: the method's own settings; a subclass names its own.

    Raises:
        ConfigError: an unknown setting.
    """

    groupings: ClassVar[tuple[str, ...]] = ("one", "similar", "per_task")
    """The ``groups`` of ``GroupingConfig`` it works with; the first is what it prefers."""

    averages: ClassVar[bool] = False
    """Whether the configured balance rule is used."""

    settings: ClassVar[Mapping[str, Any]] = {}
    """Own settings and their defaults."""

    def __init__(self, *, rule: Mapping[str, Any] | None = None, **settings: Any) -> None:
        for key in settings:
            if key not in self.settings:
                raise ConfigError(
                    f"method.{key} is not a setting of {type(self).__name__}. "
                    f"{nearest(key, self.settings or ['(none)'])}"
                )
        self.rule = dict(rule or {})
        self.config = {**self.settings, **settings}

    def attach(self, trainer: Any, context: TaskContext) -> None:
        """Put what acts during this task's training on the transformers ``Trainer``."""

    def finish(self, context: TaskContext) -> Mapping[str, Any]:
        """Change the trained parameters at the end of a task; return tensors to carry on.

        Called once, after the last step and before the adapter is saved. What is returned is
        stored with the group and comes back as ``context.carried`` when it is trained again.
        """
        return {}
