"""The accuracy matrix R[t, i]: the one source of every metric."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lcia.errors import DataError, StoreError
from lcia.files import LINES_LIMIT, read_json, write_json

Row = tuple[float | None, ...]
Counts = tuple[int | None, ...]


class AccuracyMatrix:
    """R[t, i]: the score on task i after learning task t, in percent; None if not measured.

    Row 0 is the model before it learned anything, row t the model after ``tasks[t - 1]``. There
    may be more tasks than have been learned: those of a stream still to come. Immutable: what
    adds scores returns a new matrix. Only measured cells are held: of a thousand tasks whose
    versions answer a few samples each, hardly any cell is.

    Args:
        tasks: names of the columns in the order of learning, each once.
        rows: T + 1 rows with one cell per task, each in [0, 100] or None.
        counts: of the same shape, how many held-out samples each cell rests on, where versions
            answer some of them (``evaluation.samples``); None where each cell rests on all.

    Raises:
        DataError: a task stands twice, a row has another length than ``tasks``, row 0 is missing,
            there are more rows than tasks, or a cell is not in [0, 100].
    """

    def __init__(
        self,
        *,
        tasks: Sequence[str],
        rows: Sequence[Sequence[float | None]],
        counts: Sequence[Sequence[int | None]] | None = None,
    ) -> None:
        if repeated := [task for task, count in Counter(tasks).items() if count > 1]:
            raise DataError(f"The matrix has the task '{min(repeated)}' more than once.")
        if not 1 <= len(rows) <= len(tasks) + 1:
            raise DataError(
                f"The matrix has {len(rows)} rows for {len(tasks)} tasks; expected 1 "
                f"(the model before the first task) to {len(tasks) + 1}."
            )
        for t, row in enumerate(rows):
            if len(row) != len(tasks):
                raise DataError(f"Row {t} has {len(row)} cells for {len(tasks)} tasks.")
            for task, score in zip(tasks, row, strict=True):
                _check_score(t, task, score)
        if counts is not None and (
            len(counts) != len(rows) or any(len(row) != len(tasks) for row in counts)
        ):
            raise DataError("The matrix has counts of another shape than its rows.")
        self.tasks = tuple(tasks)
        self._scores = tuple(map(_measured, rows))
        self._counts = None if counts is None else tuple(map(_measured, counts))

    @property
    def rows(self) -> tuple[Row, ...]:
        """All cells, row by row."""
        return tuple(self._whole(row) for row in self._scores)

    @property
    def counts(self) -> tuple[Counts, ...] | None:
        """The held-out samples behind all cells; None where each rests on all."""
        return None if self._counts is None else tuple(self._whole(row) for row in self._counts)

    @property
    def bounded(self) -> bool:
        """Whether cells may rest on some of the held-out samples."""
        return self._counts is not None

    def __eq__(self, other: object) -> bool:
        """Compare names, scores and counts."""
        if not isinstance(other, AccuracyMatrix):
            return NotImplemented
        parts = [(m.tasks, m._scores, m._counts) for m in (self, other)]
        return parts[0] == parts[1]

    def __repr__(self) -> str:
        """Return its size."""
        return f"AccuracyMatrix({len(self.tasks)} tasks, {self.learned} learned)"

    @classmethod
    def start(
        cls, tasks: Sequence[str] = (), scores: Mapping[str, float | None] | None = None
    ) -> "AccuracyMatrix":
        """Return a matrix with row 0 only.

        Args:
            tasks: the stream's tasks in order, as far as they are known.
            scores: task to score of the untrained model in percent.
        """
        empty = cls(tasks=tasks, rows=[[None] * len(tasks)])
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
        longer = known._derived(
            scores=(*known._scores, {}),
            counts=None if known._counts is None else (*known._counts, {}),
        )
        return longer.with_scores(t, scores, counts=counts)

    def with_scores(
        self,
        t: int,
        scores: Mapping[str, float | None],
        *,
        counts: Mapping[str, int | None] | None = None,
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
        made = wide._derived(scores=wide._with_row(wide._scores, t, scores))
        if counts is None:
            return made
        known = made._counts or ({},) * len(made._scores)
        return made._derived(counts=made._with_row(known, t, counts))

    def without_scores(self, t: int) -> "AccuracyMatrix":
        """Return the matrix with nothing measured in row ``t``."""
        nothing = dict.fromkeys(self.tasks)
        return self.with_scores(t, nothing, counts=nothing if self.bounded else None)

    @property
    def learned(self) -> int:
        """T, the number of tasks learned so far."""
        return len(self._scores) - 1

    def __getitem__(self, cell: tuple[int, int]) -> float | None:
        """Return R[t, i] as the formulas write it: ``t`` from 0, task ``i`` from 1."""
        t, i = cell
        if not (0 <= t < len(self._scores) and 1 <= i <= len(self.tasks)):
            raise IndexError(f"R[{t}, {i}] is outside R[0..{self.learned}, 1..{len(self.tasks)}].")
        return self._scores[t].get(i - 1)

    def row(self, t: int) -> dict[str, float | None]:
        """Return task to score after learning task ``t`` (0: before anything)."""
        return dict(zip(self.tasks, self._whole(self._scores[t]), strict=True))

    def measured(self, t: int) -> dict[int, float]:
        """Return the number of a task, from 1, to its score after learning task ``t``."""
        return {i + 1: score for i, score in self._scores[t].items()}

    def answered(self, t: int) -> dict[int, int]:
        """Return the number of a task, from 1, to the samples behind its score in row ``t``.

        Empty where each score rests on all samples.
        """
        counts = {} if self._counts is None else self._counts[t]
        return {i + 1: count for i, count in counts.items()}

    @property
    def basis(self) -> dict[str, int] | None:
        """What the last row rests on: tasks measured, of how many, and held-out samples.

        None where versions answer all held-out samples.
        """
        if self._counts is None:
            return None
        known = self._counts[-1].values()
        return {"tasks": len(known), "of_tasks": self.learned, "samples": sum(known)}

    def to_json(self) -> dict[str, Any]:
        """Return the matrix as JSON values; ``from_json`` gives an equal matrix back."""
        dense = {"tasks": list(self.tasks), "rows": list(map(list, self.rows))}
        if (counts := self.counts) is not None:
            dense["counts"] = list(map(list, counts))
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
            rows = [tuple(row) for row in value["rows"]]
            return cls(tasks=tuple(value["tasks"]), rows=rows, counts=value.get("counts"))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise DataError(
                "An accuracy matrix is {'tasks': [name], 'rows': [[score or null]]}; "
                f"found {str(value)[:80]} ({type(error).__name__}: {error})."
            ) from error

    @classmethod
    def _from_cells(cls, tasks: tuple[str, ...], cells: Sequence[Any]) -> "AccuracyMatrix":
        made = cls(tasks=tasks, rows=[[None] * len(tasks)])
        if not 1 <= len(cells) <= len(tasks) + 1:
            raise DataError(f"The matrix has {len(cells)} rows for {len(tasks)} tasks.")
        scores: list[dict[int, float]] = []
        counts: list[dict[int, int]] = []
        for t, listed in enumerate(cells):
            row: dict[int, float] = {}
            known: dict[int, int] = {}
            for i, score, count in listed:
                if not (0 <= score <= 100 and 0 <= i < len(tasks)):
                    _check_score(t, tasks[i], score)
                row[i] = score
                if count is not None:
                    known[i] = count
            scores.append(row)
            counts.append(known)
        return made._derived(scores=tuple(scores), counts=tuple(counts))

    def save(self, path: str | Path) -> None:
        """Write the matrix as JSON; where cells carry counts, those that were measured."""
        if self._counts is None:
            write_json(Path(path), self.to_json())
            return
        cells = [
            [[i, score, counts.get(i)] for i, score in sorted(row.items())]
            for row, counts in zip(self._scores, self._counts, strict=True)
        ]
        write_json(Path(path), {"tasks": list(self.tasks), "cells": cells}, indent=None)

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
        return self._derived(tasks=self.tasks + new)

    def _with_row(
        self, rows: tuple[Any, ...], t: int, values: Mapping[str, Any]
    ) -> tuple[Any, ...]:
        """Return rows of cells with those of row ``t`` set; None takes a cell away."""
        given = {i: values[task] for i, task in enumerate(self.tasks) if task in values}
        row = {i: value for i, value in (rows[t] | given).items() if value is not None}
        return (*rows[:t], row, *rows[t + 1 :])

    def _whole(self, row: Mapping[int, Any]) -> tuple[Any, ...]:
        return tuple(map(row.get, range(len(self.tasks))))

    def _derived(self, **parts: Any) -> "AccuracyMatrix":
        """Return a matrix of parts whose cells were checked: checking all again is T x T."""
        made = object.__new__(type(self))
        made.tasks = parts.get("tasks", self.tasks)
        made._scores = parts.get("scores", self._scores)
        made._counts = parts.get("counts", self._counts)
        return made


def _measured(row: Sequence[Any]) -> dict[int, Any]:
    return {i: value for i, value in enumerate(row) if value is not None}


def _check_score(t: int, task: str, score: float | None) -> None:
    if score is not None and not 0 <= score <= 100:
        raise DataError(
            f"Row {t}, task '{task}' is {score}; expected a score in percent, 0 to 100."
        )
