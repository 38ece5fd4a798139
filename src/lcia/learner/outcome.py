"""What learning a task led to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lcia.store.version import Version


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What learning a task led to.

    Attributes:
        task: its name.
        version: the version that holds it, now current.
        group: the adapter group that learned it.
        reason: ``reuse``, ``expand`` or ``first_group``.
        similarity: of the most similar group before, in [0, 1].
        score_base: the base model's score on the task, in percent.
        score_before: the assistant's score on it before learning, in percent.
        before: task to score before learning, in percent, the same tasks as in ``scores``.
        scores: task to score after learning, in percent, all tasks learned so far.
        seconds: time it took.
        choice: what a retrained group might have become, and why it became this; None where
            nothing was measured. See ``lcia.decision.choice.Choice``.
    """

    task: str
    version: int
    group: str
    reason: str
    similarity: float
    score_base: float | None
    score_before: float | None
    before: Mapping[str, float | None]
    scores: Mapping[str, float | None]
    seconds: float
    choice: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, version: Version) -> "Outcome":
        """Return what led to a version that holds a newly learned task."""
        manifest, matrix = version.manifest, version.matrix()
        before = matrix.row(matrix.learned - 1)
        return cls(
            task=manifest["task"],
            version=version.number,
            group=manifest["group"],
            reason=manifest["reason"],
            similarity=manifest["similarity"],
            score_base=matrix.row(0)[manifest["task"]],
            score_before=before[manifest["task"]],
            before=before,
            scores=matrix.row(matrix.learned),
            seconds=manifest["seconds"],
            choice=manifest.get("choice"),
        )
