"""From the similarity to every stored row to the similarity to every group."""

from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lcia.grouping.backend import Index

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
