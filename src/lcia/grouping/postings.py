"""An inverted index that grows by appending."""

from array import array
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


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
