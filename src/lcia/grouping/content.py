"""What a task's prompts are about: counts of their words, and the tasks a prompt may belong to.

Groups that share an instruction are told apart by what else their prompts say; so is a prompt whose
instruction is reworded or missing. No prompt is kept: only terms that stand in two or more.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lcia.grouping.index import MARKS, UNSPACED, Postings

TERMS_KEPT = 500
"""Terms kept a view of a task, the most frequent; 2,500 tell tasks apart no better."""

MIN_PROMPTS = 2
"""A term has to stand in so many prompts: what one person wrote once is nobody's subject."""

BACKGROUND = 0.5
"""Share of the background in a task's distribution: what smooths words the task never used."""

VOCABULARY = 1e4
"""Words of the language that no task taught, each equally likely: one task more in the background.

It keeps a single task from being its own background; 1e5 gives the same figures.
"""

_TERM = re.compile(f"[{UNSPACED}]|(?:(?![{UNSPACED}])[\\w{MARKS}])+|[^\\w\\s]")
_DIGIT = re.compile(r"\d")


def content_terms(text: str) -> set[str]:
    """Return the words and signs of a text and its pairs of neighbouring ones.

    Compatibility forms and case are folded, digits are all one, and scripts written without spaces
    give characters. Stop words count: they tell a question from a statement.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = [_DIGIT.sub("0", word) for word in _TERM.findall(folded)]
    return {*words, *map(" ".join, pairwise(words))}


@dataclass(frozen=True, kw_only=True)
class TermCounts:
    """In how many texts each term stands.

    Attributes:
        texts: how many were read.
        counts: term to the number of texts that hold it: at least ``MIN_PROMPTS`` of them, and the
            ``TERMS_KEPT`` most frequent, ties by the alphabet.
    """

    texts: int = 0
    counts: Mapping[str, int]

    @classmethod
    def of(cls, texts: Iterable[str]) -> "TermCounts":
        """Count the terms of some texts."""
        read = [content_terms(text) for text in texts]
        counts = Counter(term for terms in read for term in terms)
        return cls(texts=len(read), counts=_kept(counts))

    def __add__(self, other: "TermCounts") -> "TermCounts":
        """Return the counts of both; what one of them left out stays out."""
        counts = Counter(self.counts) + Counter(other.counts)
        return TermCounts(texts=self.texts + other.texts, counts=_kept(counts))

    @property
    def distribution(self) -> dict[str, float]:
        """Each term's share of all kept counts; they add up to 1."""
        total = sum(self.counts.values())
        return {term: count / total for term, count in self.counts.items()}


def _kept(counts: Mapping[str, int]) -> dict[str, int]:
    common = [(term, count) for term, count in counts.items() if count >= MIN_PROMPTS]
    return dict(sorted(common, key=lambda item: (-item[1], item[0]))[:TERMS_KEPT])


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a task's prompts are about, in two views.

    Attributes:
        prompts: counts over whole prompts, the instruction among them.
        rests: counts over what is left of them without the instruction, which tells where an
            asked prompt's instruction is another or none.
    """

    prompts: TermCounts
    rests: TermCounts

    @classmethod
    def of(cls, prompts: Sequence[str], rests: Sequence[str]) -> "Content":
        """Count the terms of a task's prompts, and of the same without their instruction."""
        return cls(prompts=TermCounts.of(prompts), rests=TermCounts.of(rests))

    def __add__(self, other: "Content") -> "Content":
        """Return what both are about."""
        return Content(prompts=self.prompts + other.prompts, rests=self.rests + other.rests)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object that `from_dict` reads back."""
        return {
            name: {"texts": view.texts, "counts": dict(view.counts)}
            for name, view in (("prompts", self.prompts), ("rests", self.rests))
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Content":
        """Build the content `to_dict` wrote."""
        return cls(**{name: TermCounts(**view) for name, view in record.items()})


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How well each row explains a prompt.

    Attributes:
        evidence: log-likelihood of the prompt over the background's, in nats, summed over both
            views; the largest is the row the prompt most likely belongs to. Shape (rows,).
        fit: the same of the better view, per term of the prompt: about 0 where a prompt has nothing
            to do with the row, 1 and more where it is like those it was taught. Shape (rows,).
    """

    evidence: NDArray[np.float64]
    fit: NDArray[np.float64]

    @property
    def probability(self) -> NDArray[np.float64]:
        """Probability of each row if the prompt belongs to one of them, shape (rows,)."""
        if not len(self.evidence):
            return self.evidence
        likelihood = np.exp(self.evidence - self.evidence.max())
        share: NDArray[np.float64] = likelihood / likelihood.sum()
        return share


class ContentIndex:
    """Naive Bayes over the terms of tasks: which of them explains a prompt best.

    With P_t a task's distribution of terms and B the mean of all P_t and a uniform one over
    ``VOCABULARY`` words, a term counts log(((1 - b) P_t + b B) / B), b = ``BACKGROUND``. Terms that
    no task holds count nothing. Adding a task adds its row; a query reads the postings of the
    prompt's own terms.

    Source: multinomial naive Bayes over word presence, with Jelinek-Mercer smoothing.
    """

    def __init__(self) -> None:
        self._views = (_View(), _View())

    def __len__(self) -> int:
        return len(self._views[0])

    def add(self, content: Content) -> None:
        """Append one row."""
        for view, counts in zip(self._views, (content.prompts, content.rests), strict=True):
            view.add(counts)

    def read(self, prompt: str) -> Reading:
        """Say how well each row explains a prompt."""
        terms = content_terms(prompt)
        ratios = [view.log_ratios(terms) for view in self._views]
        return Reading(
            evidence=ratios[0] + ratios[1],
            fit=np.maximum(*ratios) / max(1, len(terms)),
        )


class _View:
    """One view of all tasks."""

    def __init__(self) -> None:
        self._postings = Postings()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, counts: TermCounts) -> None:
        self._postings.add(self._length, counts.distribution)
        self._length += 1

    def log_ratios(self, terms: set[str]) -> NDArray[np.float64]:
        """Return log(P / B) of each row, summed over the terms that any row holds."""
        known = [term for term in sorted(terms) if term in self._postings]
        rows, shares, which = self._postings.gather({term: i for i, term in enumerate(known)})
        term_of = which.astype(np.int64)
        uniform = 1 / VOCABULARY
        background = (np.bincount(term_of, shares, len(known)) + uniform) / (len(self) + 1)
        # A row without the term has log b; what it holds of it comes on top of that.
        gain = np.log1p((1 - BACKGROUND) / BACKGROUND * shares / background[term_of])
        ratios = np.bincount(rows, gain, len(self)).astype(np.float64)
        return ratios + len(known) * np.log(BACKGROUND)
