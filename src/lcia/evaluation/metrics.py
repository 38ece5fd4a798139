"""The metrics of continual learning, all from one accuracy matrix.

R[t, i] is the score on task i after learning task t in percent, T the number of tasks learned; only
tasks already learned count. A metric that needs a cell that was not measured is None, never 0; so
is a mean over no tasks, such as the forgetting after the first.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lcia.evaluation.matrix import AccuracyMatrix


def average_accuracy(matrix: AccuracyMatrix) -> float | None:
    """Mean over i of R[T, i], in percent (Avg.ACC, MFN, OP)."""
    last = matrix.learned
    return _mean(matrix[last, i] for i in _tasks(last))


def forgetting(matrix: AccuracyMatrix) -> float | None:
    """Mean over i < T of max over j in [i, T-1] of R[j, i], minus R[T, i], in percentage points.

    Positive means lost, negative means that later tasks helped.
    """
    last = matrix.learned
    return _mean(
        _minus(_max(matrix[j, i] for j in range(i, last)), matrix[last, i])
        for i in _tasks(last - 1)
    )


def new_accuracy(matrix: AccuracyMatrix) -> float | None:
    """Mean over i of R[i, i], in percent (New.ACC, MFT): each task right after learning it."""
    return _mean(matrix[i, i] for i in _tasks(matrix.learned))


def backward_transfer(matrix: AccuracyMatrix) -> float | None:
    """Mean over i < T of R[T, i] - R[i, i], in percentage points (BWT)."""
    last = matrix.learned
    return _mean(_minus(matrix[last, i], matrix[i, i]) for i in _tasks(last - 1))


def forward_transfer(matrix: AccuracyMatrix) -> float | None:
    """Mean over i > 1 of R[i-1, i] - R[0, i], in percentage points (FWT)."""
    return _mean(_minus(matrix[i - 1, i], matrix[0, i]) for i in _tasks(matrix.learned) if i > 1)


def mean_average_accuracy(matrix: AccuracyMatrix) -> float | None:
    """Mean over t of the mean over i <= t of R[t, i], in percent (MAA)."""
    return _mean(_mean(matrix[t, i] for i in _tasks(t)) for t in _tasks(matrix.learned))


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
