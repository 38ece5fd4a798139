"""Paired tests: is a candidate worse than the current version on the same samples?

All are one-sided: p is the chance of a drop at least as large if neither of the two were better.
Answers that are right or wrong are compared by McNemar's exact test, graded scores by a paired
bootstrap whose draws a name seeds. So the same scores always give the same p.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
DRAWN = 1_000_000
"""Samples drawn at once, to bound memory."""

Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Drop:
    """How much a candidate's mean score is below the current version's, and what chance explains.

    Attributes:
        before: mean score of the current version.
        after: mean score of the candidate.
        floor: the largest drop of the mean that is put down to chance.
        n: samples that both answered.
        p: of the test; None where the samples are too few for any drop to be significant. The
            floor is then one answer.
        level: what p has to be below, to be worse than chance.
    """

    before: float
    after: float
    floor: float
    n: int
    p: float | None
    level: float

    @property
    def size(self) -> float:
        """The drop; below 0 where the candidate is better."""
        return self.before - self.after

    @property
    def is_real(self) -> bool:
        """Whether chance does not explain it."""
        if self.p is None:
            return self.size > self.floor + 1e-9
        return self.p < self.level


def drop_of(before: Sequence[float], after: Sequence[float], *, alpha: float, name: str) -> Drop:
    """Test one set of samples.

    Args:
        before: score of each sample by the current version.
        after: by the candidate, in the same order.
        alpha: the chance of calling a drop real that is not.
        name: seeds the draws.
    """
    return drops_of({name: (before, after)}, alpha=alpha)[name]


def drops_of(
    pairs: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, alpha: float
) -> dict[str, Drop]:
    """Test several sets of samples; the chance that any drop is wrongly called real is ``alpha``.

    By Holm's procedure over the sets in which a score changed: the others cannot have dropped.

    Args:
        pairs: name to the scores before and after, sample by sample.
        alpha: for all of them together.
    """
    arrays = {name: (np.array(b, float), np.array(a, float)) for name, (b, a) in pairs.items()}
    changed = [name for name, (before, after) in arrays.items() if (before != after).any()]
    few = {n for n, (b, _) in arrays.items() if _too_few(len(b), alpha / max(1, len(changed)))}
    tested = {name: _p(*arrays[name], name=name) for name in changed if name not in few}
    ranked = sorted(tested, key=lambda name: tested[name])
    levels: dict[str, float] = {}
    level, rejecting = alpha, True
    for rank, name in enumerate(ranked):  # behind the first that holds, all others hold
        level = alpha / (len(ranked) - rank) if rejecting else level
        rejecting = rejecting and tested[name] < level
        levels[name] = level
    found = {}
    for name, (before, after) in arrays.items():
        level = levels.get(name, alpha)
        floor = 1 / max(1, len(before))
        if name not in few:
            floor = _floor(before, after, level=level, name=name)
        found[name] = Drop(
            before=_mean(before),
            after=_mean(after),
            floor=floor,
            n=len(before),
            p=None if name in few else tested.get(name, 1.0),
            level=level,
        )
    return found


def mcnemar(lost: int, won: int) -> float:
    """Return the chance of so many losses among changed answers, if each were as likely a win."""
    changed = lost + won
    return sum(math.comb(changed, k) for k in range(lost, changed + 1)) / 2**changed


def fisher(hits: int, of: int, other_hits: int, other_of: int) -> float:
    """Return Fisher's exact one-sided p: the chance of so many hits if both rates were the same.

    Args:
        hits: of the one whose rate may be higher.
        of: its cases.
        other_hits: of the other.
        other_of: its cases.
    """
    total = hits + other_hits
    ways = math.comb(of + other_of, total)
    most = min(of, total)
    more = range(hits, most + 1)
    return sum(math.comb(of, k) * math.comb(other_of, total - k) for k in more) / ways


def _too_few(count: int, level: float) -> bool:
    return bool(0.5**count >= level)


def _mean(scores: Scores) -> float:
    return float(scores.mean()) if len(scores) else 0.0


def _graded(before: Scores, after: Scores) -> bool:
    return not np.isin(np.concatenate([before, after]), (0.0, 1.0)).all()


def _counts(before: Scores, after: Scores) -> tuple[int, int]:
    return int((before > after).sum()), int((before < after).sum())


def _p(before: Scores, after: Scores, *, name: str) -> float:
    if not _graded(before, after):
        return mcnemar(*_counts(before, after))
    by_chance = _resampled(before - after, name=name)
    drop = float((before - after).mean())
    return (1 + int((by_chance >= drop - 1e-12).sum())) / (RESAMPLES + 1)


def _floor(before: Scores, after: Scores, *, level: float, name: str) -> float:
    """Return the largest drop of the mean that is not significant at ``level``."""
    if not _graded(before, after):
        lost = changed = sum(_counts(before, after))
        tail = 1
        while lost and tail / 2**changed < level:
            lost -= 1
            tail += math.comb(changed, lost)
        return max(0, lost - (changed - lost)) / max(1, len(before))
    by_chance = np.sort(_resampled(before - after, name=name))
    place = min(RESAMPLES - 1, max(0, RESAMPLES - math.ceil(level * (RESAMPLES + 1)) + 1))
    return max(0.0, float(by_chance[place]))


def _resampled(drops: Scores, *, name: str) -> Scores:
    """Return means of resampled drops, shifted so that nothing drops on average."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    dice = np.random.default_rng(seed)
    centred, count = drops - drops.mean(), len(drops)
    rows = max(1, DRAWN // count)
    sizes = [min(rows, RESAMPLES - done) for done in range(0, RESAMPLES, rows)]
    means = [centred[dice.integers(count, size=(size, count))].mean(axis=1) for size in sizes]
    return np.concatenate(means)
