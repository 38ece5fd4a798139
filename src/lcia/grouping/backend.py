"""What a similarity backend is."""

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
