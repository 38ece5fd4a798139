"""The accuracy matrix R[t, i]: the one source of every metric."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lcia.errors import DataError, StoreError
from lcia.files import read_json, write_json

Row = tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class AccuracyMatrix:
    """R[t, i]: the score on task i after learning task t, in percent; None if not measured.

    Row 0 is the model before it learned anything, row t the model after ``tasks[t - 1]``. There
    may be more tasks than have been learned: those of a stream still to come. Immutable: what
    adds scores returns a new matrix.

    Attributes:
        tasks: names of the columns in the order of learning, each once.
        rows: T + 1 rows with one cell per task, each in [0, 100] or None.
    """

    tasks: tuple[str, ...]
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        """Check the shape and the range of every cell.

        Raises:
            DataError: a task stands twice, a row has another length than ``tasks``, row 0 is
                missing, there are more rows than tasks, or a cell is not in [0, 100].
        """
        if repeated := sorted({task for task in self.tasks if self.tasks.count(task) > 1}):
            raise DataError(f"The matrix has the task '{repeated[0]}' more than once.")
        if not 1 <= len(self.rows) <= len(self.tasks) + 1:
            raise DataError(
                f"The matrix has {len(self.rows)} rows for {len(self.tasks)} tasks; expected 1 "
                f"(the model before the first task) to {len(self.tasks) + 1}."
            )
        for t, row in enumerate(self.rows):
            if len(row) != len(self.tasks):
                raise DataError(f"Row {t} has {len(row)} cells for {len(self.tasks)} tasks.")
            for task, score in zip(self.tasks, row, strict=True):
                if score is not None and not 0 <= score <= 100:
                    raise DataError(
                        f"Row {t}, task '{task}' is {score}; expected a score in percent, 0 to 100."
                    )

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

    def append(self, task: str, scores: Mapping[str, float | None]) -> "AccuracyMatrix":
        """Return the matrix with one more row: the scores after learning ``task``.

        Args:
            task: the task just learned; a new name adds a column.
            scores: task to score in percent; tasks left out were not measured.

        Raises:
            DataError: the order of learning calls for another task, or a score is out of range.
        """
        t = self.learned + 1
        known = self._with_columns([task])
        if (due := known.tasks[t - 1]) != task:
            raise DataError(f"Row {t} of the matrix belongs to the task '{due}', not to '{task}'.")
        longer = replace(known, rows=(*known.rows, (None,) * len(known.tasks)))
        return longer.with_scores(t, scores)

    def with_scores(self, t: int, scores: Mapping[str, float | None]) -> "AccuracyMatrix":
        """Return the matrix with the cells of row ``t`` set; unknown tasks add columns.

        Args:
            t: row, 0 to ``learned``.
            scores: task to score in percent.

        Raises:
            DataError: there is no such row, or a score is out of range.
        """
        if not 0 <= t <= self.learned:
            raise DataError(f"The matrix has rows 0 to {self.learned}, no row {t}.")
        wide = self._with_columns(scores)
        row = tuple(
            scores.get(task, old) for task, old in zip(wide.tasks, wide.rows[t], strict=True)
        )
        return replace(wide, rows=(*wide.rows[:t], row, *wide.rows[t + 1 :]))

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

    def to_json(self) -> dict[str, Any]:
        """Return the matrix as JSON values; ``from_json`` gives an equal matrix back."""
        return {"tasks": list(self.tasks), "rows": [list(row) for row in self.rows]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "AccuracyMatrix":
        """Return the matrix that ``to_json`` described.

        Raises:
            DataError: keys are missing or cells are no scores.
        """
        try:
            return cls(tasks=tuple(value["tasks"]), rows=tuple(tuple(r) for r in value["rows"]))
        except (KeyError, TypeError) as error:
            raise DataError(
                "An accuracy matrix is {'tasks': [name], 'rows': [[score or null]]}; "
                f"found {str(value)[:80]} ({type(error).__name__}: {error})."
            ) from error

    def save(self, path: str | Path) -> None:
        """Write the matrix as JSON."""
        write_json(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> "AccuracyMatrix":
        """Read a matrix that ``save`` wrote.

        Raises:
            StoreError: the file cannot be read or does not hold a matrix.
        """
        try:
            return cls.from_json(read_json(Path(path)))
        except (StoreError, DataError) as error:
            raise StoreError(f"{path}: no accuracy matrix: {error}") from error

    def _with_columns(self, tasks: Sequence[str] | Mapping[str, float | None]) -> "AccuracyMatrix":
        new = tuple(task for task in tasks if task not in self.tasks)
        cells = (None,) * len(new)
        return replace(self, tasks=self.tasks + new, rows=tuple(row + cells for row in self.rows))
