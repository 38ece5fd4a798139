"""What a continual-learning method may change about plain training."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from lcia.data.sample import Sample, Task
from lcia.errors import ConfigError
from lcia.registry import nearest


@dataclass(kw_only=True)
class TaskContext:
    """What a method sees of the task being learned.

    Attributes:
        task: the task.
        task_index: how many tasks the assistant learned before this one.
        group: id of the adapter group that is trained.
        reused: whether the group existed before: only then is there something to protect.
        parameters: the trainable parameters by name, float32, as training starts.
        encode: samples to one batch as the model takes it, on the model's device.
        carried: tensors the method left for this group after its last task, by name.
        remembered: samples the method kept for this group after its last task.
        held: the task's validation samples; some may be in ``task.train``, none is remembered.
        measured: whether what a retrained group becomes is chosen on validation samples.
        alone: whether the task is trained as if it opened a group, on nothing else and from where
            groups start: a sibling will most likely take it.
        seed: seed of this task.
    """

    task: Task
    task_index: int
    group: str
    reused: bool
    parameters: Mapping[str, Any]
    encode: Callable[[Sequence[Sample]], Mapping[str, Any]]
    carried: Mapping[str, Any] = field(default_factory=dict)
    remembered: Sequence[Sample] = ()
    held: Sequence[Sample] = ()
    measured: bool = False
    alone: bool = False
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """What a retrained group may become.

    Attributes:
        states: name to a function that returns the parameters' values by name; ``trained`` are
            those that training ended with.
        distances: returns name to 1/2 sum F (theta - theta_old)^2 with the F of the earlier tasks,
            and 1/2 sum F_new (theta - theta_trained)^2; empty where no precision is known.
    """

    states: Mapping[str, Callable[[], Mapping[str, Any]]]
    distances: Callable[[], Mapping[str, tuple[float, float]]] = dict


class Method:
    """Plain training; a subclass overrides what differs.

    One object learns one task, so what ``attach`` needs again later can be kept on ``self``.
    Whatever changes during training has to travel with Trainer's checkpoints, or be computed
    again from the adapter that training started from.

    Args:
        rule: balance rule of methods that average, as a mapping with its ``name``.
        **settings: the method's own settings; a subclass names its own.

    Raises:
        ConfigError: an unknown setting, or not a number it can be.
    """

    groupings: ClassVar[tuple[str, ...]] = ("one", "similar", "per_task")
    """The ``groups`` of ``GroupingConfig`` it works with; the first is what it prefers."""

    fixed_grouping: ClassVar[Mapping[str, Any]] = {}
    """Fields of ``GroupingConfig`` that are the method's own, whatever is configured."""

    averages: ClassVar[bool] = False
    """Whether the configured balance rule is used."""

    trains: ClassVar[bool] = True
    """Whether anything is trained; if not, a task's adapter is a fresh one that changes nothing."""

    joint: ClassVar[bool] = False
    """Whether the tasks of a stream are gathered, and learned together when the last one comes."""

    task_given: ClassVar[bool] = False
    """Whether held-out samples go to the group that learned their task, past the router."""

    sharded: ClassVar[bool] = True
    """Whether it works where parameters are spread over ranks (FSDP, DeepSpeed ZeRO)."""

    settings: ClassVar[Mapping[str, Any]] = {}
    """Own settings and their defaults."""

    def __init__(self, *, rule: Mapping[str, Any] | None = None, **settings: Any) -> None:
        for key, value in settings.items():
            if key not in self.settings:
                raise ConfigError(
                    f"method.{key} is not a setting of {type(self).__name__}. "
                    f"{nearest(key, self.settings or ['(none)'])}"
                )
            whole = isinstance(self.settings[key], int)
            kinds, least = (int, 1) if whole else ((int, float), 0)
            is_number = isinstance(value, kinds) and not isinstance(value, bool)
            if not is_number or not least <= value < math.inf:
                kind = "whole number" if whole else "number"
                raise ConfigError(f"method.{key} is {value!r}; expected a {kind} from {least} up.")
        self.rule = dict(rule or {})
        self.config = {**self.settings, **settings}

    def open(self, host: Any, start: Path | None, adapter: Mapping[str, Any]) -> Any:
        """Put the adapter to train on the model, and return the ``PeftModel``.

        Args:
            host: the ``AdapterHost`` of the base model.
            start: directory of the adapter to train on; None for a fresh one.
            adapter: ``peft.LoraConfig`` of a fresh one.
        """
        from peft import LoraConfig

        if start is not None:
            return host.adapter_to_train(start)
        return host.new_adapter(LoraConfig(**adapter))

    def samples(self, context: TaskContext) -> Sequence[Sample]:
        """Return what is trained on; Trainer shuffles it every epoch."""
        return context.task.train

    @property
    def held_back(self) -> float:
        """Share of a task's training samples that is not trained on, to choose by."""
        return 0.0

    @property
    def trained_when_opening(self) -> float:
        """Share of the held-back samples that a task opening a group is trained on after all."""
        return 0.0

    @property
    def keeps_held_back(self) -> bool:
        """Whether the held-back samples stay with the group, for later choices."""
        return False

    def candidates(self, context: TaskContext) -> Candidates | None:
        """Return what a retrained group may become; None: what training ended with.

        Called after the last step, before ``finish``, where ``context.measured``.
        """
        return None

    def attach(self, trainer: Any, context: TaskContext) -> None:
        """Put what acts during this task's training on the transformers ``Trainer``.

        Called before Trainer loads a checkpoint: the parameters are those training starts from.
        """

    def extra_loss(self, model: Any, inputs: Mapping[str, Any], outputs: Any) -> Any | None:
        """Return what is added to the loss of a batch, a scalar; None for nothing.

        It counts with the batch's share of the answer tokens of its optimizer step, as the
        model's own loss does. So a mean over answer tokens is one over the whole step, and what
        does not depend on the batch counts once per step, whatever accumulation and ranks.

        Args:
            model: the ``PeftModel``, not wrapped.
            inputs: the batch as the collator made it, ``labels`` among it.
            outputs: what the model returned for it.
        """
        return None

    def finish(self, context: TaskContext) -> Mapping[str, Any]:
        """Change the trained parameters at the end of a task; return tensors to carry on.

        Called once, after the last step and before the adapter is saved. What is returned is
        stored with the group and comes back as ``context.carried`` when it is trained again.
        Where a sibling group was chosen, the context is that of a group that did not exist before.
        """
        return {}

    def remember(self, context: TaskContext) -> Sequence[Sample]:
        """Return samples to keep with the group; they come back as ``context.remembered``.

        All that is to be kept, not only this task's; they are stored as they are.
        """
        return ()
