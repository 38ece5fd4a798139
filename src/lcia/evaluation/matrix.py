"""The accuracy matrix R[t, i]: the one source of every metric."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcia.errors import DataError, StoreError
from lcia.files import LINES_LIMIT, json_bytes, read_json, write_bytes, write_json

Row = tuple[float | None, ...]
Counts = tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True)
class AccuracyMatrix:
    """R[t, i]: the score on task i after learning task t, in percent; None if not measured.

    Row 0 is the model before it learned anything, row t the model after ``tasks[t - 1]``. There
    may be more tasks than have been learned: those of a stream still to come. Immutable: what
    adds scores returns a new matrix.

    Attributes:
        tasks: names of the columns in the order of learning, each once.
        rows: T + 1 rows with one cell per task, each in [0, 100] or None.
        counts: of the same shape, how many held-out samples each cell rests on, where versions
            answer some of them (``evaluation.samples``); None where each cell rests on all.
    """

    tasks: tuple[str, ...]
    rows: tuple[Row, ...]
    counts: tuple[Counts, ...] | None = None

    def __post_init__(self) -> None:
        """Check the shape and the range of every cell.

        Raises:
            DataError: a task stands twice, a row has another length than ``tasks``, row 0 is
                missing, there are more rows than tasks, or a cell is not in [0, 100].
        """
        if repeated := [task for task, count in Counter(self.tasks).items() if count > 1]:
            raise DataError(f"The matrix has the task '{min(repeated)}' more than once.")
        if not 1 <= len(self.rows) <= len(self.tasks) + 1:
            raise DataError(
                f"The matrix has {len(self.rows)} rows for {len(self.tasks)} tasks; expected 1 "
                f"(the model before the first task) to {len(self.tasks) + 1}."
            )
        for t, row in enumerate(self.rows):
            if len(row) != len(self.tasks):
                raise DataError(f"Row {t} has {len(row)} cells for {len(self.tasks)} tasks.")
            for task, score in zip(self.tasks, row, strict=True):
                _check_score(t, task, score)
        if self.counts is not None and (
            len(self.counts) != len(self.rows)
            or any(len(counts) != len(self.tasks) for counts in self.counts)
        ):
            raise DataError("The matrix has counts of another shape than its rows.")

    @classmethod
    def start(
        cls, tasks: Sequence[str] = (), scores: Mapping[str, float | None] | None = None
    ) -> "AccuracyMatrix":
        """Return a matrix with row 0 only.

        Args:
            tasks: the stream's tasks in order, as far as they are known.
            scores: task to score of the untrained model in percent.
        """
        empty = cls(tasks=tuple(tasks), rows=((None,) * len(tasks),))
        return empty.with_scores(0, scores or {})

    def append(
        self,
        task: str,
        scores: Mapping[str, float | None],
        *,
        counts: Mapping[str, int] | None = None,
    ) -> "AccuracyMatrix":
        """Return the matrix with one more row: the scores after learning ``task``.

        Args:
            task: the task just learned; a new name adds a column.
            scores: task to score in percent; tasks left out were not measured.
            counts: task to the samples its score rests on, where that may be some of them.

        Raises:
            DataError: the order of learning calls for another task, or a score is out of range.
        """
        t = self.learned + 1
        known = self._with_columns([task])
        if (due := known.tasks[t - 1]) != task:
            raise DataError(f"Row {t} of the matrix belongs to the task '{due}', not to '{task}'.")
        empty = (None,) * len(known.tasks)
        longer = known._derived(
            rows=(*known.rows, empty),
            counts=None if known.counts is None else (*known.counts, empty),
        )
        return longer.with_scores(t, scores, counts=counts)

    def with_scores(
        self,
        t: int,
        scores: Mapping[str, float | None],
        *,
        counts: Mapping[str, int] | None = None,
    ) -> "AccuracyMatrix":
        """Return the matrix with the cells of row ``t`` set; unknown tasks add columns.

        Args:
            t: row, 0 to ``learned``.
            scores: task to score in percent.
            counts: task to the samples its score rests on, where that may be some of them.

        Raises:
            DataError: there is no such row, or a score is out of range.
        """
        if not 0 <= t <= self.learned:
            raise DataError(f"The matrix has rows 0 to {self.learned}, no row {t}.")
        for task, score in scores.items():
            _check_score(t, task, score)
        wide = self._with_columns(scores)
        row = tuple(
            scores.get(task, old) for task, old in zip(wide.tasks, wide.rows[t], strict=True)
        )
        made = wide._derived(rows=(*wide.rows[:t], row, *wide.rows[t + 1 :]))
        return made if counts is None else made._with_counts(t, counts)

    def without_scores(self, t: int) -> "AccuracyMatrix":
        """Return the matrix with nothing measured in row ``t``."""
        empty = (None,) * len(self.tasks)
        made = self._derived(rows=(*self.rows[:t], empty, *self.rows[t + 1 :]))
        return made if self.counts is None else made._with_counts(t, dict.fromkeys(self.tasks))

    @property
    def learned(self) -> int:
        """T, the number of tasks learned so far."""
        return len(self.rows) - 1

    def __getitem__(self, cell: tuple[int, int]) -> float | None:
        """Return R[t, i] as the formulas write it: ``t`` from 0, task ``i`` from 1."""
        t, i = cell
        if not (0 <= t < len(self.rows) and 1 <= i <= len(self.tasks)):
            raise IndexError(f"R[{t}, {i}] is outside R[0..{self.learned}, 1..{len(self.tasks)}].")
        return self.rows[t][i - 1]

    def row(self, t: int) -> dict[str, float | None]:
        """Return task to score after learning task ``t`` (0: before anything)."""
        return dict(zip(self.tasks, self.rows[t], strict=True))

    @property
    def basis(self) -> dict[str, int] | None:
        """What the last row rests on: tasks measured, of how many, and held-out samples.

        None where versions answer all held-out samples.
        """
        if self.counts is None:
            return None
        known = [count for count in self.counts[-1] if count is not None]
        return {"tasks": len(known), "of_tasks": self.learned, "samples": sum(known)}

    def to_json(self) -> dict[str, Any]:
        """Return the matrix as JSON values; ``from_json`` gives an equal matrix back."""
        dense = {"tasks": list(self.tasks), "rows": [list(row) for row in self.rows]}
        if self.counts is not None:
            dense["counts"] = [list(counts) for counts in self.counts]
        return dense

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "AccuracyMatrix":
        """Return the matrix that ``to_json`` described.

        Raises:
            DataError: keys are missing or cells are no scores.
        """
        try:
            if "cells" in value:
                return cls._from_cells(tuple(value["tasks"]), value["cells"])
            counts = value.get("counts")
            return cls(
                tasks=tuple(value["tasks"]),
                rows=tuple(tuple(r) for r in value["rows"]),
                counts=None if counts is None else tuple(tuple(row) for row in counts),
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise DataError(
                "An accuracy matrix is {'tasks': [name], 'rows': [[score or null]]}; "
                f"found {str(value)[:80]} ({type(error).__name__}: {error})."
            ) from error

    @classmethod
    def _from_cells(cls, tasks: tuple[str, ...], cells: Sequence[Any]) -> "AccuracyMatrix":
        rows, counts = [], []
        for t, listed in enumerate(cells):
            row: list[float | None] = [None] * len(tasks)
            known: list[int | None] = [None] * len(tasks)
            for i, score, count in listed:
                if not 0 <= score <= 100:
                    _check_score(t, tasks[i], score)
                row[i], known[i] = score, count
            rows.append(tuple(row))
            counts.append(tuple(known))
        made = cls(tasks=tasks, rows=((None,) * len(tasks),))
        return made._derived(rows=tuple(rows), counts=tuple(counts))

    def save(self, path: str | Path) -> None:
        """Write the matrix as JSON; where cells carry counts, those that were measured."""
        if self.counts is None:
            write_json(Path(path), self.to_json())
            return
        cells = [
            [[i, score, counts[i]] for i, score in enumerate(row) if score is not None]
            for row, counts in zip(self.rows, self.counts, strict=True)
        ]
        write_bytes(Path(path), json_bytes({"tasks": list(self.tasks), "cells": cells}) + b"\n")

    @classmethod
    def load(cls, path: str | Path) -> "AccuracyMatrix":
        """Read a matrix that ``save`` wrote.

        Raises:
            StoreError: the file cannot be read or does not hold a matrix.
        """
        try:
            return cls.from_json(read_json(Path(path), limit=LINES_LIMIT))
        except (StoreError, DataError) as error:
            raise StoreError(f"{path}: no accuracy matrix: {error}") from error

    def _with_columns(self, tasks: Sequence[str] | Mapping[str, float | None]) -> "AccuracyMatrix":
        known = set(self.tasks)
        new = tuple(task for task in dict.fromkeys(tasks) if task not in known)
        if not new:
            return self
        cells = (None,) * len(new)
        return self._derived(
            tasks=self.tasks + new,
            rows=tuple(row + cells for row in self.rows),
            counts=None if self.counts is None else tuple(row + cells for row in self.counts),
        )

    def _with_counts(self, t: int, counts: Mapping[str, int | None]) -> "AccuracyMatrix":
        empty = (None,) * len(self.tasks)
        known = self.counts or (empty,) * len(self.rows)
        row = tuple(counts.get(task, old) for task, old in zip(self.tasks, known[t], strict=True))
        return self._derived(counts=(*known[:t], row, *known[t + 1 :]))

    def _derived(self, **parts: Any) -> "AccuracyMatrix":
        """Return a matrix of parts whose cells were checked: checking all again is T x T."""
        made = object.__new__(type(self))
        for name in ("tasks", "rows", "counts"):
            object.__setattr__(made, name, parts.get(name, getattr(self, name)))
        return made


def _check_score(t: int, task: str, score: float | None) -> None:
    if score is not None and not 0 <= score <= 100:
        raise DataError(
            f"Row {t}, task '{task}' is {score}; expected a score in percent, 0 to 100."
        )
