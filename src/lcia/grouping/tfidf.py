"""Pair TF-IDF similarity, exactly, for all pairs at once, and its incremental index."""

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from math import log
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from lcia.grouping.config import GroupingConfig
from lcia.grouping.stopwords import STOP_WORDS

Terms = Callable[[str], list[str]]

_WORD = re.compile(r"(?u)\b\w\w+\b")
# Squared smoothed IDF of a term in one of two documents; that of a term in both is 1.
_C2 = (log(3 / 2) + 1) ** 2


def paper_terms(text: str) -> list[str]:
    """Split ``text`` as the paper does: lower case, words of two or more, no stop words."""
    return [word for word in _WORD.findall(text.lower()) if word not in STOP_WORDS]


def normalized(text: str) -> str:
    """Return ``text`` in lower case with every run of white space as one space."""
    return " ".join(text.lower().split())


def pair_similarity(
    a: Sequence[str], b: Sequence[str], *, terms: Terms = paper_terms
) -> NDArray[np.float64]:
    """Cosine of the TF-IDF vectors of every pair, vocabulary and IDF fitted on that pair alone.

    With two documents the smoothed IDF is 1 for a term in both and c = ln(3/2) + 1 for a term in
    one. With term counts a, b, the sums running over the terms in both texts,

        sim = sum(a b) / sqrt((sum(a a) + c^2 (|a|^2 - sum(a a))) (sum(b b) + c^2 (...)))

    so three sparse products give all pairs. Every sum is of integers: the result depends on no
    order of summation, and equal texts give exactly 1.

    Args:
        a: texts, length m.
        b: texts, length n.
        terms: splits a text into terms.

    Returns:
        Shape (m, n), in [0, 1]. Where no term is left in either text: 1 if the normalised texts
        are equal, else 0.

    Source: LCIA (arXiv:2410.10868), instruction grouping; scikit-learn's ``TfidfVectorizer``
    with ``stop_words="english"``, fitted on each pair.
    """
    counts_a, counts_b = _count_matrices([terms(text) for text in a], [terms(text) for text in b])
    dot = (counts_a @ counts_b.T).toarray()
    shared_a = (counts_a.multiply(counts_a) @ counts_b.sign().T).toarray()
    shared_b = (counts_a.sign() @ counts_b.multiply(counts_b).T).toarray()
    squares_a = counts_a.multiply(counts_a).sum(axis=1).reshape(-1, 1)
    squares_b = counts_b.multiply(counts_b).sum(axis=1).reshape(1, -1)
    result = _cosine(dot, (shared_a, squares_a), (shared_b, squares_b))
    for i in np.flatnonzero(squares_a == 0).tolist():
        for j in np.flatnonzero(squares_b == 0).tolist():
            result[i, j] = normalized(a[i]) == normalized(b[j])
    return result


class TfidfIndex:
    """The stored texts' term counts by term: one posting list a term, one row a text.

    This is the sparse count matrix held by column, so a query reads only the columns of its own
    terms, and adding a text appends to the columns of its terms and touches nothing else.
    """

    def __init__(self, terms: Terms = paper_terms) -> None:
        self._terms = terms
        self._rows: dict[str, array[int]] = {}
        self._counts: dict[str, array[int]] = {}
        self._squares: array[float] = array("d")
        self._without_terms: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._squares)

    def add(self, texts: Iterable[str]) -> None:
        """Append one row a text."""
        for text in texts:
            row = len(self._squares)
            counts = Counter(self._terms(text))
            for term, count in counts.items():
                self._rows.setdefault(term, array("i")).append(row)
                self._counts.setdefault(term, array("i")).append(count)
            self._squares.append(sum(count * count for count in counts.values()))
            if not counts:
                self._without_terms[row] = normalized(text)

    def similarity_to(self, text: str) -> NDArray[np.float64]:
        """Pair similarity of ``text`` to every row, shape (rows,); equals `pair_similarity`."""
        counts = Counter(self._terms(text))
        if not counts:
            return self._similarity_without_terms(text)
        known = [term for term in counts if term in self._rows]
        if not known:
            return np.zeros(len(self))
        rows = np.concatenate([np.frombuffer(self._rows[term], np.int32) for term in known])
        stored = np.concatenate([np.frombuffer(self._counts[term], np.int32) for term in known])
        asked = np.repeat(
            np.array([counts[term] for term in known], float),
            [len(self._rows[term]) for term in known],
        )
        length = len(self)
        dot = np.bincount(rows, asked * stored, length)
        shared_stored = np.bincount(rows, stored.astype(float) ** 2, length)
        shared_asked = np.bincount(rows, asked * asked, length)
        squares = np.frombuffer(self._squares)
        asked_squares = float(sum(count * count for count in counts.values()))
        return _cosine(dot, (shared_asked, asked_squares), (shared_stored, squares))

    def _similarity_without_terms(self, text: str) -> NDArray[np.float64]:
        result = np.zeros(len(self))
        wanted = normalized(text)
        result[[row for row, stored in self._without_terms.items() if stored == wanted]] = 1
        return result


class TfidfSimilarity:
    """Pair TF-IDF, the paper's: exact word overlap, English stop words removed."""

    terms: Terms = staticmethod(paper_terms)

    def __init__(self, config: GroupingConfig) -> None:
        del config

    def new_index(self) -> TfidfIndex:
        """Return an empty index of instructions."""
        return TfidfIndex(self.terms)

    def pairs(self, a: Sequence[str], b: Sequence[str]) -> NDArray[np.float64]:
        """Similarity of all pairs, shape (len(a), len(b))."""
        return pair_similarity(a, b, terms=self.terms)


def _cosine(dot: Any, a: tuple[Any, Any], b: tuple[Any, Any]) -> NDArray[np.float64]:
    """Divide ``dot`` by the norms of two sides, each given as (shared, all) squared counts."""
    (shared_a, squares_a), (shared_b, squares_b) = a, b
    norms = (shared_a + _C2 * (squares_a - shared_a)) * (shared_b + _C2 * (squares_b - shared_b))
    result: NDArray[np.float64] = np.divide(
        dot, np.sqrt(norms), out=np.zeros(norms.shape), where=norms > 0
    )
    return result


def _count_matrices(a: list[list[str]], b: list[list[str]]) -> tuple[Any, Any]:
    columns: dict[str, int] = {}
    for term in chain.from_iterable(chain(a, b)):
        columns.setdefault(term, len(columns))
    return _count_matrix(a, columns), _count_matrix(b, columns)


def _count_matrix(texts: list[list[str]], columns: dict[str, int]) -> Any:
    indices = [columns[term] for terms in texts for term in terms]
    indptr = np.cumsum([0, *map(len, texts)])
    shape = (len(texts), max(1, len(columns)))
    matrix = sparse.csr_array((np.ones(len(indices)), indices, indptr), shape=shape)
    matrix.sum_duplicates()
    return matrix
