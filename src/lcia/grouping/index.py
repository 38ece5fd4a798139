"""What similarities are made of: terms, backends, inverted indexes, rows that belong to groups."""

import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
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

    Attributes:
        parts: how many lines, paragraphs and sentences at each end of a prompt may be compared for
            one answer, by what a comparison costs.
    """

    parts: int

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


Terms = Callable[[str], list[str]]

_WORD = re.compile(r"(?u)\b\w\w+\b")
# Marks and joiners are not \w, so accents and vowel signs would cut the words of these scripts.
MARKS = (
    "\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670"
    "\u0900-\u0963\u0966-\u0dff\u200c\u200d"
)
# Scripts written without spaces: kana, Han, Thai, Lao, Burmese, Khmer.
UNSPACED = (
    "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
)
_RUN = re.compile(f"[{UNSPACED}]+|(?:(?![{UNSPACED}])[\\w{MARKS}])+")
_is_unspaced = re.compile(f"[{UNSPACED}]").match
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2060\ufeff\ud800-\udfff]+")

# Written out, not imported from scikit-learn: importing that takes a second, and a list that
# changed under a stored codebook would change its decisions. A test holds the two equal.
# Source: the list of the Glasgow Information Retrieval group, in the form scikit-learn uses.
_STOP_LIST = """
a about above across after afterwards again against all almost alone along already also although
always am among amongst amoungst amount an and another any anyhow anyone anything anyway
anywhere are around as at back be became because become becomes becoming been before beforehand
behind being below beside besides between beyond bill both bottom but by call can cannot cant co
con could couldnt cry de describe detail do done down due during each eg eight either eleven
else elsewhere empty enough etc even ever every everyone everything everywhere except few
fifteen fifty fill find fire first five for former formerly forty found four from front full
further get give go had has hasnt have he hence her here hereafter hereby herein hereupon hers
herself him himself his how however hundred i ie if in inc indeed interest into is it its itself
keep last latter latterly least less ltd made many may me meanwhile might mill mine more
moreover most mostly move much must my myself name namely neither never nevertheless next nine
no nobody none noone nor not nothing now nowhere of off often on once one only onto or other
others otherwise our ours ourselves out over own part per perhaps please put rather re same see
seem seemed seeming seems serious several she should show side since sincere six sixty so some
somehow someone something sometime sometimes somewhere still such system take ten than that the
their them themselves then thence there thereafter thereby therefore therein thereupon these
they thick thin third this those though three through throughout thru thus to together too top
toward towards twelve twenty two un under until up upon us very via was we well were what
whatever when whence whenever where whereafter whereas whereby wherein whereupon wherever
whether which while whither who whoever whole whom whose why will with within without would yet
you your yours yourself yourselves
"""

STOP_WORDS = frozenset(_STOP_LIST.split())


def paper_terms(text: str) -> list[str]:
    """Split ``text`` as the paper does: lower case, words of two or more, no stop words."""
    return [word for word in _WORD.findall(text.lower()) if word not in STOP_WORDS]


def unicode_terms(text: str) -> list[str]:
    """Split ``text`` in any language.

    Compatibility forms and case are folded, control characters separate words, and scripts written
    without spaces give pairs of neighbouring characters. English stop words and single letters
    are left out, as in `paper_terms`.
    """
    folded = unicodedata.normalize("NFKC", _CONTROL.sub(" ", text)).casefold()
    terms: list[str] = []
    for run in _RUN.findall(folded):
        if _is_unspaced(run[0]):
            terms.extend(map("".join, pairwise(run)) if len(run) > 1 else [run])
        elif len(run) > 1 and run not in STOP_WORDS:
            terms.append(run)
    return terms


def normalized(text: str) -> str:
    """Return ``text`` in lower case with every run of white space as one space."""
    return " ".join(text.lower().split())
