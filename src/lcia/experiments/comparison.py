"""Labels against each other: mean and deviation, and differences paired by seed and order."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from lcia.errors import ConfigError
from lcia.evaluation.matrix import AccuracyMatrix
from lcia.evaluation.metrics import MEASURES
from lcia.experiments.finished import FinishedRun
from lcia.registry import nearest

FORGETTING_RATIO = "mean forgetting over the baseline's, over the seeds and orders both have"
SHARE_OF_JOINT = "mean Avg.ACC over that of multitask, over the seeds both have"


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and standard deviation of some values.

    Attributes:
        mean: their mean.
        std: with n - 1 in its denominator; None for a single value.
        n: how many.
    """

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """Return the spread of the values; None if there are none or one is unavailable."""
        known = []
        for value in values:
            if value is None:
                return None
            known.append(value)
        if not known:
            return None
        return cls(mean=fmean(known), std=stdev(known) if len(known) > 1 else None, n=len(known))


@dataclass(frozen=True, kw_only=True)
class LabelSummary:
    """All runs of one label.

    Attributes:
        label: name of method, rule and grouping.
        method: the method's name.
        runs: over seeds and orders.
        measures: measure to its spread; None where a run lacks it.
        differences: measure to the spread of its paired differences from the baseline.
        forgetting_ratio: see ``FORGETTING_RATIO``.
        share_of_joint: see ``SHARE_OF_JOINT``; in percent.
    """

    label: str
    method: str
    runs: tuple[FinishedRun, ...]
    measures: Mapping[str, Spread | None]
    differences: Mapping[str, Spread | None]
    forgetting_ratio: float | None
    share_of_joint: float | None

    def matrix(self, order: str) -> AccuracyMatrix | None:
        """Return the mean matrix of the runs in one order; None if there are none."""
        matrices = [run.matrix for run in self.runs if run.order == order]
        if not matrices:
            return None
        rows = [
            tuple(None if None in cells else fmean(cells) for cells in zip(*rows, strict=True))
            for rows in zip(*(matrix.rows for matrix in matrices), strict=True)
        ]
        return AccuracyMatrix(tasks=matrices[0].tasks, rows=tuple(rows))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs of one stream, by label.

    Attributes:
        baseline: the label that differences are taken from.
        labels: in the order they were begun.
        warnings: what to know before reading the numbers.
    """

    baseline: str
    labels: tuple[LabelSummary, ...]
    warnings: tuple[str, ...]

    @property
    def runs(self) -> tuple[FinishedRun, ...]:
        """All runs, label by label."""
        return tuple(run for label in self.labels for run in label.runs)

    @property
    def orders(self) -> dict[str, tuple[str, ...]]:
        """Name of each order to its tasks."""
        return {run.order: tuple(run.fingerprints) for run in self.runs}


def compare(
    runs: Sequence[FinishedRun], *, baseline: str | None = None, warnings: Sequence[str] = ()
) -> Comparison:
    """Compare runs of one stream.

    Args:
        runs: at least one, as ``find_runs`` returns them.
        baseline: a label; None: the first.
        warnings: to keep with the comparison.

    Raises:
        ConfigError: no run has the baseline's label.
    """
    by_label: dict[str, list[FinishedRun]] = {}
    for run in runs:
        by_label.setdefault(run.label, []).append(run)
    baseline = next(iter(by_label)) if baseline is None else baseline
    if baseline not in by_label:
        raise ConfigError(f"baseline '{baseline}' is no label. {nearest(baseline, by_label)}")
    joint = next((of_label for of_label in by_label.values() if of_label[0].joint), [])
    summaries = [
        _summary(of_label, baseline=by_label[baseline], joint=joint)
        for of_label in by_label.values()
    ]
    return Comparison(baseline=baseline, labels=tuple(summaries), warnings=tuple(warnings))


def _summary(
    runs: list[FinishedRun], *, baseline: list[FinishedRun], joint: list[FinishedRun]
) -> LabelSummary:
    pairs = _pairs(runs, baseline)
    return LabelSummary(
        label=runs[0].label,
        method=runs[0].method,
        runs=tuple(runs),
        measures={name: Spread.of(run.metrics[name] for run in runs) for name in MEASURES},
        differences={
            name: Spread.of(_minus(run.metrics[name], base.metrics[name]) for run, base in pairs)
            for name in MEASURES
        },
        forgetting_ratio=_ratio(
            [run.metrics["forgetting"] for run, _ in pairs],
            [base.metrics["forgetting"] for _, base in pairs],
        ),
        share_of_joint=_share_of_joint(runs, joint),
    )


def _pairs(
    runs: Sequence[FinishedRun], baseline: Sequence[FinishedRun]
) -> list[tuple[FinishedRun, FinishedRun]]:
    """Return the runs beside their baselines; one learned at once stands for all orders."""
    if runs[0].joint:
        return [(run, base) for base in baseline if (run := _same(base, runs))]
    return [(run, base) for run in runs if (base := _same(run, baseline))]


def _same(run: FinishedRun, others: Sequence[FinishedRun]) -> FinishedRun | None:
    """Return the one with the run's seed and order, or of any order if learned at once."""
    exact = next((other for other in others if other.key == run.key), None)
    return exact or next((o for o in others if o.joint and o.seed == run.seed), None)


def _share_of_joint(runs: Sequence[FinishedRun], joint: Sequence[FinishedRun]) -> float | None:
    # The order of tasks means nothing to what is learned at once: only the seed has to match.
    seeds = {run.seed for run in runs} & {run.seed for run in joint}
    share = _ratio(
        [run.metrics["average_accuracy"] for run in runs if run.seed in seeds],
        [run.metrics["average_accuracy"] for run in joint if run.seed in seeds],
    )
    return None if share is None else 100 * share


def _ratio(values: Sequence[float | None], bases: Sequence[float | None]) -> float | None:
    value, base = Spread.of(values), Spread.of(bases)
    if value is None or base is None or base.mean <= 0 or math.isclose(base.mean, 0):
        return None
    return value.mean / base.mean


def _minus(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right
