"""The metrics of continual learning, all from one accuracy matrix.

R[t, i] is the score on task i after learning task t in percent, T the number of tasks learned; only
tasks already learned count. A metric that needs a cell that was not measured is None, never 0; so
is a mean over no tasks, such as the forgetting after the first.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from lcia.evaluation.matrix import AccuracyMatrix

if TYPE_CHECKING:
    from lcia.evaluation.generate import Prediction


def average_accuracy(matrix: AccuracyMatrix) -> float | None:
    """Mean over i of R[T, i], in percent (Avg.ACC, MFN, OP).

    Where a version answers some of the held-out samples, the earlier tasks' mean is that of those
    measured, and the last task, which always is, counts as one of T.
    """
    return _row_mean(matrix, matrix.learned)


def forgetting(matrix: AccuracyMatrix) -> float | None:
    """Mean over i < T of max over j in [i, T-1] of R[j, i], minus R[T, i], in percentage points.

    Positive means lost, negative means that later tasks helped. None where a version answers some
    of the held-out samples: the largest of scores of a few samples says more than the assistant
    ever knew.
    """
    last = matrix.learned
    if matrix.bounded:
        return None
    columns = list(zip(*matrix.rows, strict=True))
    return _mean(
        _minus(_max(columns[i - 1][i:last]), columns[i - 1][last]) for i in _tasks(last - 1)
    )


def new_accuracy(matrix: AccuracyMatrix) -> float | None:
    """Mean over i of R[i, i], in percent (New.ACC, MFT): each task right after learning it."""
    return _mean(matrix[i, i] for i in _tasks(matrix.learned))


def backward_transfer(matrix: AccuracyMatrix) -> float | None:
    """Mean over i < T of R[T, i] - R[i, i], in percentage points (BWT).

    Where a version answers some of the held-out samples, over the i that it measured.
    """
    last = matrix.learned
    known = (i for i in matrix.measured(last) if i < last) if matrix.bounded else _tasks(last - 1)
    return _mean(_minus(matrix[last, i], matrix[i, i]) for i in known)


def forward_transfer(matrix: AccuracyMatrix) -> float | None:
    """Mean over i > 1 of R[i-1, i] - R[0, i], in percentage points (FWT)."""
    return _mean(_minus(matrix[i - 1, i], matrix[0, i]) for i in _tasks(matrix.learned) if i > 1)


def mean_average_accuracy(matrix: AccuracyMatrix) -> float | None:
    """Mean over t of the mean over i <= t of R[t, i], in percent (MAA); see average_accuracy."""
    return _mean(_row_mean(matrix, t) for t in _tasks(matrix.learned))


def _row_mean(matrix: AccuracyMatrix, t: int) -> float | None:
    """Return the mean of the first t cells of row t, or what those measured say of it."""
    if not matrix.bounded or t < 2:
        return _mean(matrix[t, i] for i in _tasks(t))
    own = matrix[t, t]
    earlier = _mean(score for i, score in matrix.measured(t).items() if i < t)
    return None if earlier is None or own is None else ((t - 1) * earlier + own) / t


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number of a run and how it is shown.

    Attributes:
        label: name in tables, with the field's abbreviations.
        short: name where room is scarce.
        formula: how it is computed, as text.
        unit: ``percent``, ``points`` (of percent), ``count``, ``steps``, ``seconds`` or none.
        higher_is_better: the direction of improvement; None if there is none.
    """

    label: str
    short: str
    formula: str
    unit: str = ""
    higher_is_better: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Metric(Measure):
    """A number computed from the accuracy matrix.

    Attributes:
        compute: matrix to value, None if a cell it needs is missing.
    """

    compute: Callable[[AccuracyMatrix], float | None]


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "average_accuracy": Metric(
            compute=average_accuracy,
            label="Average accuracy (Avg.ACC)",
            short="Avg.ACC",
            formula="mean over i of R[T, i]",
            unit="percent",
            higher_is_better=True,
        ),
        "forgetting": Metric(
            compute=forgetting,
            label="Forgetting",
            short="Forgetting",
            formula="mean over i < T of max over j in [i, T−1] of R[j, i], minus R[T, i]",
            unit="points",
            higher_is_better=False,
        ),
        "new_accuracy": Metric(
            compute=new_accuracy,
            label="New accuracy (New.ACC)",
            short="New.ACC",
            formula="mean over i of R[i, i]",
            unit="percent",
            higher_is_better=True,
        ),
        "backward_transfer": Metric(
            compute=backward_transfer,
            label="Backward transfer (BWT)",
            short="BWT",
            formula="mean over i < T of R[T, i] − R[i, i]",
            unit="points",
            higher_is_better=True,
        ),
        "forward_transfer": Metric(
            compute=forward_transfer,
            label="Forward transfer (FWT)",
            short="FWT",
            formula="mean over i > 1 of R[i−1, i] − R[0, i]",
            unit="points",
            higher_is_better=True,
        ),
        "mean_average_accuracy": Metric(
            compute=mean_average_accuracy,
            label="Mean average accuracy (MAA)",
            short="MAA",
            formula="mean over t of the mean over i ≤ t of R[t, i]",
            unit="percent",
            higher_is_better=True,
        ),
    }
)


def summarise(matrix: AccuracyMatrix) -> dict[str, float | None]:
    """Return every metric by name; None where it is unavailable."""
    return {name: metric.compute(matrix) for name, metric in METRICS.items()}


def _tasks(last: int) -> range:
    return range(1, last + 1)


def _minus(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right


def _max(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else max(value for value in known if value is not None)


def _mean(values: Iterable[float | None]) -> float | None:
    listed = list(values)
    known = [value for value in listed if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(listed) else None


MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        **METRICS,
        "general_ability": Measure(
            label="General ability (Δ)",
            short="General Δ",
            formula="mean over the held-out tasks, never trained, of the score after the last task "
            "minus the base model's",
            unit="points",
            higher_is_better=True,
        ),
        "routing_accuracy": Measure(
            label="Routing accuracy",
            short="Routing",
            formula="share of the test samples sent to the group that learned their task",
            unit="percent",
            higher_is_better=True,
        ),
        "task_given_accuracy": Measure(
            label="Avg.ACC with the task given",
            short="Task given",
            formula="mean over i of R[T, i], every sample sent to the group that learned its task",
            unit="percent",
            higher_is_better=True,
        ),
        "groups": Measure(
            label="Groups", short="Groups", formula="adapter groups at the end", unit="count"
        ),
        "trainable_parameters": Measure(
            label="Trainable parameters",
            short="Trained",
            formula="numbers in the adapter trained last",
            unit="count",
        ),
        "stored_parameters": Measure(
            label="Stored parameters",
            short="Stored",
            formula="numbers in all adapters and in what the method keeps with them",
            unit="count",
        ),
        "stored_samples": Measure(
            label="Stored samples",
            short="Samples",
            formula="training samples that the method keeps",
            unit="count",
        ),
        "steps_per_task": Measure(
            label="Steps a task",
            short="Steps",
            formula="optimizer steps over tasks",
            unit="steps",
        ),
        "beta_mean": Measure(
            label="Balance weight β",
            short="β",
            formula="mean over the steps that average, and over tensors",
        ),
        "horizon_steps": Measure(
            label="Horizon",
            short="Horizon",
            formula="1 / (1 − mean β): steps the average remembers",
            unit="steps",
        ),
        "fallback_share": Measure(
            label="Fallbacks",
            short="Fallbacks",
            formula="share of tensor updates whose β is the fallback, over the steps that average",
            unit="percent",
        ),
        "seconds": Measure(
            label="Time",
            short="Time",
            formula="training and answering, all tasks",
            unit="seconds",
            higher_is_better=False,
        ),
    }
)
"""By name, in the order of tables."""


def routing_accuracy(
    predictions: "Sequence[Prediction]", learned_by: Mapping[str, str]
) -> float | None:
    """Share of the samples sent to the group that learned their task, in percent.

    Args:
        predictions: on test samples of the tasks.
        learned_by: task to group.

    Returns:
        None if there is nothing to route: no samples, or no groups.
    """
    if not predictions or not learned_by:
        return None
    right = sum(p.group == learned_by[p.task] for p in predictions)
    return 100 * right / len(predictions)


def general_ability(before: Mapping[str, float], after: Mapping[str, float]) -> float | None:
    """Mean over tasks of score after minus score before, in points; None without tasks.

    Args:
        before: task to score of the base model, in percent.
        after: the same tasks' scores of the assistant.
    """
    return (
        math.fsum(after[task] - before[task] for task in before) / len(before) if before else None
    )


def averaging(betas: Sequence[float], fallbacks: Sequence[float]) -> dict[str, float | None]:
    """Return ``beta_mean``, ``horizon_steps`` and ``fallback_share``; None without steps.

    Args:
        betas: mean balance weight of each step that averaged, in [0, 1].
        fallbacks: share of its tensors that fell back, in [0, 1].
    """
    if not betas:
        return {"beta_mean": None, "horizon_steps": None, "fallback_share": None}
    beta = math.fsum(betas) / len(betas)
    return {
        "beta_mean": beta,
        "horizon_steps": 1 / (1 - beta) if beta < 1 else None,
        "fallback_share": 100 * math.fsum(fallbacks) / len(fallbacks),
    }
