"""What a similarity backend is."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class InstructionIndex(Protocol):
    """Stored texts, one row each, that a text can be compared with."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def add(self, texts: Iterable[str]) -> None:
        """Append one row a text; nothing already stored is computed again."""
        ...

    def similarity_to(self, text: str) -> NDArray[np.float64]:
        """Return the similarity of ``text`` to every row, shape (rows,), in [0, 1]."""
        ...


class Similarity(Protocol):
    """A way to compare two texts, chosen by name in ``lcia.registry.SIMILARITIES``.

    It is constructed with a `GroupingConfig`.
    """

    def new_index(self) -> InstructionIndex:
        """Return an empty index."""
        ...

    def pairs(self, a: Sequence[str], b: Sequence[str]) -> NDArray[np.float64]:
        """Return the similarity of all pairs, shape (len(a), len(b)), in [0, 1]."""
        ...
