"""What similarities are made of: backends, inverted indexes, rows that belong to groups."""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Index(Protocol):
    """Stored items, one row each, that a text can be compared with."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def add(self, items: Iterable[Any]) -> None:
        """Append one row an item; nothing already stored is computed again."""
        ...

    def similarity_to(self, text: str) -> NDArray[np.float64]:
        """Return the similarity of ``text`` to every row, shape (rows,), in [0, 1]."""
        ...


class Similarity(Protocol):
    """A way to compare two texts, chosen by name in ``lcia.registry.SIMILARITIES``.

    It is constructed with a `GroupingConfig`.
    """

    def pairs(self, a: Sequence[str], b: Sequence[str]) -> NDArray[np.float64]:
        """Return the similarity of all pairs, shape (len(a), len(b)), in [0, 1]."""
        ...

    def shared_terms(self, a: str, b: str) -> dict[str, float]:
        """Return the terms of both with their share of the similarity, largest first.

        The shares add up to the similarity. Empty where a similarity does not come from terms.
        """
        ...

    def instruction_index(self) -> Index:
        """Return an empty index of texts."""
        ...

    def prompt_index(self) -> Index:
        """Return an empty index of prototypes."""
        ...

    def prototypes(self, prompts: Sequence[str]) -> list[Any]:
        """Return a few prototypes of a task's prompts, as JSON values."""
        ...

    def computed(self, texts: Sequence[str]) -> dict[str, Any]:
        """Return what was computed for stored texts and is dear to compute again, as JSON."""
        ...

    def restore(self, computed: Mapping[str, Any]) -> None:
        """Take back what `computed` returned."""
        ...


class Postings:
    """Term to the rows that hold it and its value there: a sparse matrix held by column.

    A query reads only the columns of its own terms; adding a row appends to the columns of its
    terms and touches nothing else.
    """

    def __init__(self) -> None:
        self._rows: dict[str, array[int]] = {}
        self._values: dict[str, array[float]] = {}

    def __contains__(self, term: str) -> bool:
        return term in self._rows

    def add(self, row: int, values: Mapping[str, float]) -> None:
        """Append the terms of one row; rows come in rising order."""
        for term, value in values.items():
            if term not in self._rows:
                self._rows[term], self._values[term] = array("q"), array("d")
            self._rows[term].append(row)
            self._values[term].append(value)

    def gather(
        self, terms: Mapping[str, float]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Return every posting of ``terms``.

        Returns:
            Three arrays of shape (postings,): row, value stored there, value asked.
        """
        known = [term for term in terms if term in self._rows]
        lengths = [len(self._rows[term]) for term in known]
        rows = np.concatenate(
            [np.zeros(0, np.int64), *(np.frombuffer(self._rows[t], np.int64) for t in known)]
        )
        stored = np.concatenate([np.zeros(0), *(np.frombuffer(self._values[t]) for t in known)])
        asked = np.repeat(np.array([terms[term] for term in known], float), lengths)
        return rows, stored, asked


# A mean is summed in units of 2^-42, as integers: exact, so no order of the rows changes a
# decision, with room for two million rows a group.
_ONE = float(2**42)


class GroupedRows:
    """An index whose rows belong to groups.

    Args:
        index: the rows.
        mean: a group's similarity is the mean over its rows; else the largest of them.
    """

    def __init__(self, index: Index, *, mean: bool) -> None:
        self._index = index
        self._mean = mean
        self._group = array("q")
        self._items: list[Any] = []

    def add(self, group: int, items: Sequence[Any]) -> None:
        """Append rows that belong to the group at position ``group``."""
        self._index.add(items)
        self._items.extend(items)
        self._group.extend([group] * len(items))

    def scores(self, text: str, groups: int) -> NDArray[np.float64]:
        """Return the similarity of ``text`` to each of ``groups`` groups; 0 without rows."""
        group = np.frombuffer(self._group, np.int64)
        rows = self._index.similarity_to(text)
        if not self._mean:
            highest = np.zeros(groups)
            np.maximum.at(highest, group, rows)
            return highest
        totals = np.zeros(groups, np.int64)
        np.add.at(totals, group, np.rint(rows * _ONE).astype(np.int64))
        sizes = np.maximum(1, np.bincount(group, minlength=groups))
        means: NDArray[np.float64] = totals / sizes / _ONE
        return means

    def nearest_item(self, text: str, group: int) -> Any:
        """Return the group's item most similar to ``text``; None where it has none."""
        rows = np.flatnonzero(np.frombuffer(self._group, np.int64) == group)
        if not len(rows):
            return None
        return self._items[rows[np.argmax(self._index.similarity_to(text)[rows])]]
