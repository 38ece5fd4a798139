"""The key-value cache of the running batch: rows come and go, columns move on together."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, CacheLayerMixin

HEADROOM = 128
"""Free columns after a move: moving costs about one step's reading, once in as many steps."""


class Arena(Cache):
    """Keys and values of sequences that all end at the same column.

    Each step writes one column for all rows, in place: nothing is concatenated. A row of n tokens
    lies in the last n columns, left-padded like a batch that started together, so that masks of
    sliding windows are right as well. Columns run on until the buffer ends; then what is alive
    moves to its beginning, or to a larger buffer. Buffers stay as large as they once had to be: a
    server that allocates anew with every wave of requests fragments its memory. What lies before a
    row's tokens is zero: masked is not enough, because zero times NaN is NaN.

    Args:
        layers: number of the model's attention layers.
        cells: rows times columns that the buffers may have; None: as many as come. Whoever lets
            rows join sees to it that the longest they get, times how many they are, is no more.

    Attributes:
        intact: False once a change failed in the middle of it, for want of memory; ``clear``
            makes the arena usable again.
    """

    layers: list[Any]

    def __init__(self, *, layers: int, cells: int | None = None) -> None:
        self.cells = cells
        self.window = _Window()
        self.intact = True
        super().__init__(layers=[_ArenaLayer(self.window) for _ in range(layers)])

    @property
    def lengths(self) -> list[int]:
        """Tokens each row holds."""
        return self.window.lengths

    def mask(self, device: Any) -> torch.Tensor:
        """Return the attention mask of the next step, shape (rows, columns + 1)."""
        width = self.window.width
        lengths = torch.tensor(self.lengths, device=device)[:, None]
        return torch.arange(width + 1, device=device) >= width - lengths

    def join(self, prefilled: DynamicCache, lengths: Sequence[int], rows: Sequence[int]) -> None:
        """Take over sequences that were prefilled together, as the arena's last rows.

        Args:
            prefilled: their cache, left-padded to a common width.
            lengths: tokens of each sequence in it.
            rows: which of them to take.
        """
        self.intact = False
        window, first = self.window, len(self.lengths)
        new_layers: list[Any] = prefilled.layers
        width = max(lengths[row] for row in rows)
        if window.end < width or first + len(rows) > window.rows:
            self._move(rows=first + len(rows), width=width, like=prefilled)
        for mine, theirs in zip(self.layers, new_layers, strict=True):
            for buffer, new in ((mine.keys, theirs.keys), (mine.values, theirs.values)):
                for target, row in enumerate(rows, first):
                    begin = window.end - lengths[row]
                    buffer[target, :, :begin] = 0
                    buffer[target, :, begin : window.end] = new[row, :, -lengths[row] :]
        window.lengths = [*self.lengths, *(lengths[row] for row in rows)]
        self.intact = True

    def make_room(self) -> None:
        """See to it that one more column can be written."""
        if self.window.end == self.window.columns:
            self.intact = False
            self._move(rows=len(self.lengths), width=self.window.width)
            self.intact = True

    def advance(self) -> None:
        """Count the column that a forward pass has written."""
        self.window.end += 1
        self.window.lengths = [length + 1 for length in self.lengths]

    def drop(self, row: int) -> None:
        """Free a row: the last one takes its place."""
        last, end = len(self.lengths) - 1, self.window.end
        if row != last:
            for layer in self.layers:
                for buffer in (layer.keys, layer.values):
                    buffer[row, :, :end] = buffer[last, :, :end]
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        if not self.lengths:
            self.window.end = 0

    def clear(self) -> None:
        """Free all rows and the memory."""
        self.window.clear()
        for layer in self.layers:
            layer.keys = layer.values = None
            layer.is_initialized = False
        self.intact = True

    def _move(self, *, rows: int, width: int, like: DynamicCache | None = None) -> None:
        """Let the rows end at ``width`` or their own width, in buffers that are large enough."""
        window = self.window
        end = max(width, window.width)
        new_rows = max(window.rows, 1 << (rows - 1).bit_length())
        columns = max(window.columns, end + HEADROOM)
        if self.cells is not None and new_rows * columns > self.cells:
            # Not as large as they once had to be, nor rounded up: as many rows as there are.
            new_rows = max(rows, min(new_rows, self.cells // (end + HEADROOM)))
            columns = max(end + 1, min(end + HEADROOM, self.cells // new_rows))
        for i, layer in enumerate(self.layers):
            layer.move(end=end, rows=new_rows, columns=columns, like=like and like.layers[i])
        window.end, window.rows, window.columns = end, new_rows, columns


@dataclass
class _Window:
    """Which part of the buffers is alive; shared by all layers."""

    lengths: list[int] = field(default_factory=list)
    end: int = 0
    rows: int = 0
    columns: int = 0

    @property
    def width(self) -> int:
        return max(self.lengths, default=0)

    def clear(self) -> None:
        self.lengths, self.end, self.rows, self.columns = [], 0, 0, 0


class _ArenaLayer(CacheLayerMixin):
    is_sliding = False
    keys: Any
    values: Any

    def __init__(self, window: _Window) -> None:
        super().__init__()
        self.window = window

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.is_initialized = True

    def move(self, *, end: int, rows: int, columns: int, like: Any) -> None:
        window, alive = self.window, len(self.window.lengths)
        same = (rows, columns) == (window.rows, window.columns)
        for name in ("keys", "values"):
            old = getattr(self, name)
            source = getattr(like, name) if old is None else old
            _, heads, _, size = source.shape
            new = old if same else source.new_zeros(rows, heads, columns, size)
            if alive:
                span = old[:alive, :, window.end - window.width : window.end]
                new[:alive, :, end - window.width : end] = span.clone() if same else span
                new[:alive, :, : end - window.width] = 0
            setattr(self, name, new)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        window = self.window
        rows, end = len(window.lengths), window.end
        self.keys[:rows, :, end : end + 1] = key_states
        self.values[:rows, :, end : end + 1] = value_states
        columns = slice(end - window.width, end + 1)
        return self.keys[:rows, :, columns], self.values[:rows, :, columns]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.window.width + query_length, 0

    def get_seq_length(self) -> int:
        return self.window.width

    def get_max_length(self) -> int:
        return -1
