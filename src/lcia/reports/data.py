"""What a report shows: plain records, independent of the store they are read from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lcia.evaluation.matrix import AccuracyMatrix


@dataclass(frozen=True, kw_only=True)
class GroupRecord:
    """One adapter group.

    Attributes:
        id: name of the group.
        tasks: the tasks it learned, in order.
        instructions: the instructions stored for it.
        adapter_bytes: size of its adapter on disk, None if unknown.
    """

    id: str
    tasks: tuple[str, ...]
    instructions: tuple[str, ...]
    adapter_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One optimizer step.

    Attributes:
        task: the task being learned.
        step: number of the step within the task, from 1.
        loss: training loss, None if not logged at this step.
        beta_mean: mean balance weight over all tensors; None for a method without an average.
        beta_min: the smallest of them.
        beta_max: the largest of them.
        fallbacks: reason to the share of tensors, 0 to 1, that fell back for it.
    """

    task: str
    step: int
    loss: float | None = None
    beta_mean: float | None = None
    beta_min: float | None = None
    beta_max: float | None = None
    fallbacks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SampleAnswer:
    """One answer with the way it was routed.

    Attributes:
        prompt: what was asked.
        answer: what the assistant said.
        expected: an acceptable answer, None if there is none.
        group: the group that answered, None for the base model.
        similarity: of the prompt's instruction to that group, 0 to 1.
        reason: why this group.
        images: what the prompt shows, as ``data:`` addresses.
    """

    prompt: str
    answer: str
    expected: str | None = None
    group: str | None = None
    similarity: float | None = None
    reason: str | None = None
    images: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One stream learned with one method.

    Attributes:
        method: what the run is called in tables, unique within a report.
        matrix: the scores; every metric is computed from it.
        groups: the adapter groups at the end.
        steps: the optimizer steps in order, all tasks in one sequence.
        routing: task to group to the share, 0 to 1, of its instances that went there.
        choices: what each retrained group might have become: ``lcia.decision.choice.Choice`` as
            its manifest has it, one a task that was measured.
        samples: a few answers.
    """

    method: str
    matrix: AccuracyMatrix
    groups: tuple[GroupRecord, ...] = ()
    steps: tuple[StepRecord, ...] = ()
    routing: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    choices: tuple[Mapping[str, Any], ...] = ()
    samples: tuple[SampleAnswer, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything on one page.

    Attributes:
        title: heading of the page.
        runs: at least one; several are compared side by side.
        settings: the resolved configuration, nested as in YAML.
        versions: package to version.
        date: shown if given; without it the same data give the same bytes.
    """

    title: str
    runs: tuple[RunRecord, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    date: str | None = None
