"""Similarity by words: pair TF-IDF, exactly, for all pairs at once and incrementally."""

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from math import log, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lcia.grouping.config import GroupingConfig
from lcia.grouping.index import Postings, Terms, normalized, paper_terms, unicode_terms

# Squared smoothed IDF of a term in one of two documents; that of a term in both is 1.
_C2 = (log(3 / 2) + 1) ** 2
_CENTROID_TERMS = 300


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
    squared_a, squared_b = counts_a.multiply(counts_a), counts_b.multiply(counts_b)
    result = _cosine(
        (counts_a @ counts_b.T).toarray(),
        ((squared_a @ counts_b.sign().T).toarray(), squared_a.sum(axis=1).reshape(-1, 1)),
        ((counts_a.sign() @ squared_b.T).toarray(), squared_b.sum(axis=1).reshape(1, -1)),
    )
    for i in np.flatnonzero(squared_a.sum(axis=1) == 0).tolist():
        for j in np.flatnonzero(squared_b.sum(axis=1) == 0).tolist():
            result[i, j] = normalized(a[i]) == normalized(b[j])
    return result


class TfidfIndex:
    """Term counts of stored texts, to compare a text with all of them at once."""

    def __init__(self, terms: Terms = paper_terms) -> None:
        self._terms = terms
        self._postings = Postings()
        self._squares: array[float] = array("d")
        self._without_terms: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._squares)

    def add(self, items: Iterable[str]) -> None:
        """Append one row a text."""
        for text in items:
            counts = Counter(self._terms(text))
            if not counts:
                self._without_terms[len(self)] = normalized(text)
            self._postings.add(len(self), counts)
            self._squares.append(_squared(counts))

    def similarity_to(self, text: str) -> NDArray[np.float64]:
        """Pair similarity of ``text`` to every row, shape (rows,); equals `pair_similarity`."""
        counts = Counter(self._terms(text))
        if not counts:
            wanted = normalized(text)
            equal = [row for row, stored in self._without_terms.items() if stored == wanted]
            return np.isin(np.arange(len(self)), equal).astype(float)
        rows, stored, asked = self._postings.gather(counts)
        return _cosine(
            np.bincount(rows, asked * stored, len(self)),
            (np.bincount(rows, asked * asked, len(self)), _squared(counts)),
            (np.bincount(rows, stored * stored, len(self)), np.frombuffer(self._squares)),
        )


class CentroidIndex:
    """Centroids of the term counts of tasks' prompts: the cosine of a text to each of them."""

    def __init__(self, terms: Terms = paper_terms) -> None:
        self._terms = terms
        self._postings = Postings()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, items: Iterable[Mapping[str, float]]) -> None:
        """Append one row a centroid, given as term to weight."""
        for centroid in items:
            self._postings.add(self._length, centroid)
            self._length += 1

    def similarity_to(self, text: str) -> NDArray[np.float64]:
        """Cosine of ``text`` to every centroid, shape (rows,)."""
        counts = Counter(self._terms(text))
        rows, stored, asked = self._postings.gather(counts)
        dot = np.bincount(rows, asked * stored, len(self))
        return np.minimum(1.0, dot / sqrt(_squared(counts) or 1.0))


class TfidfSimilarity:
    """Pair TF-IDF, the paper's: words in common, English stop words removed."""

    parts = 8
    terms: Terms = staticmethod(paper_terms)

    def __init__(self, config: GroupingConfig) -> None:
        del config

    def pairs(self, a: Sequence[str], b: Sequence[str]) -> NDArray[np.float64]:
        """Similarity of all pairs, shape (len(a), len(b))."""
        return pair_similarity(a, b, terms=self.terms)

    def shared_terms(self, a: str, b: str) -> dict[str, float]:
        """Terms of both texts with their share of the similarity, largest first."""
        counts_a, counts_b = Counter(self.terms(a)), Counter(self.terms(b))
        products = {term: counts_a[term] * counts_b[term] for term in counts_a & counts_b}
        total = sum(products.values()) or 1
        similarity = float(self.pairs([a], [b])[0, 0])
        shares = {term: similarity * product / total for term, product in products.items()}
        return dict(sorted(shares.items(), key=lambda item: (-item[1], item[0])))

    def instruction_index(self) -> TfidfIndex:
        """Return an empty index of texts."""
        return TfidfIndex(self.terms)

    def prompt_index(self) -> CentroidIndex:
        """Return an empty index of centroids."""
        return CentroidIndex(self.terms)

    def prototypes(self, prompts: Sequence[str]) -> list[dict[str, float]]:
        """Return the centroid of the prompts' unit count vectors: its heaviest terms, unit length.

        One centroid a task; several were only tried for embeddings (docs/grouping.md).
        """
        total: Counter[str] = Counter()
        for prompt in prompts:
            counts = Counter(self.terms(prompt))
            length = sqrt(_squared(counts) or 1.0)
            for term, count in counts.items():
                total[term] += count / length  # type: ignore[assignment]
        kept = sorted(total.items(), key=lambda item: (-item[1], item[0]))[:_CENTROID_TERMS]
        length = sqrt(sum(weight * weight for _, weight in kept)) or 1.0
        return [{term: weight / length for term, weight in kept}] if kept else []

    def computed(self, texts: Sequence[str]) -> dict[str, Any]:
        """Return nothing: counting terms again is as fast as reading them."""
        return {}

    def restore(self, computed: Mapping[str, Any]) -> None:
        """Take back nothing."""


class UnicodeTfidfSimilarity(TfidfSimilarity):
    """Pair TF-IDF for all languages: Unicode folded, scripts without spaces by character pairs."""

    terms: Terms = staticmethod(unicode_terms)


def _squared(counts: Mapping[str, float]) -> float:
    return float(sum(count * count for count in counts.values()))


def _cosine(dot: Any, a: tuple[Any, Any], b: tuple[Any, Any]) -> NDArray[np.float64]:
    """Divide ``dot`` by the norms of two sides, each given as (shared, all) squared counts."""
    (shared_a, squares_a), (shared_b, squares_b) = a, b
    norms = (shared_a + _C2 * (squares_a - shared_a)) * (shared_b + _C2 * (squares_b - shared_b))
    # The floor leaves every possible product of norms alone but 0, where dot is 0 too.
    result: NDArray[np.float64] = dot / np.sqrt(np.maximum(norms, 0.5))
    return result


def _count_matrices(a: list[list[str]], b: list[list[str]]) -> tuple[Any, Any]:
    columns: dict[str, int] = {}
    for term in chain.from_iterable(chain(a, b)):
        columns.setdefault(term, len(columns))
    return _count_matrix(a, columns), _count_matrix(b, columns)


def _count_matrix(texts: list[list[str]], columns: dict[str, int]) -> Any:
    from scipy import sparse  # a quarter of a second, and routing does not need it

    indices = [columns[term] for terms in texts for term in terms]
    indptr = np.cumsum([0, *map(len, texts)])
    shape = (len(texts), max(1, len(columns)))
    matrix = sparse.csr_array((np.ones(len(indices)), indices, indptr), shape=shape)
    matrix.sum_duplicates()
    return matrix
