"""What the verbs print: tables, JSON."""

import json
import sys
from collections.abc import Collection, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lcia.errors import escaped, printable


class _Terminal(Console):
    """A console that shows control characters in texts instead of obeying them."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does, but break no line, nor a path in it, for what reads a pipe."""
        if not self.is_terminal and all(isinstance(o, str) for o in objects):
            options.setdefault("soft_wrap", True)
        super().print(*(escaped(o) if isinstance(o, str) else o for o in objects), **options)


console = _Terminal(highlight=False)
_ESCAPES = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}
"""Control characters that JSON leaves as they are."""


def print_json(value: Any) -> None:
    """Print JSON for programs, on the stdout that ``main`` keeps free of everything else."""
    assert sys.__stdout__ is not None
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str).translate(_ESCAPES)
    sys.__stdout__.write(text + "\n")


def number(value: float | None, digits: int = 1) -> str:
    """Format a number; a missing one is a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: Sequence[int] = (0,),
    bold: Collection[tuple[int, int]] = (),
) -> None:
    """Print a title and a table; columns are right-aligned but those whose index is in ``left``.

    Row and column of cells to stress are in ``bold``. Cells are shown as they are: brackets in
    them are no markup. A table of numbers that is wider than the terminal is printed in parts,
    each with the first column.
    """
    console.print(Text(printable(title), style="bold"), soft_wrap=True)
    widths = [max(cell_len(cell) for cell in cells) for cells in zip(columns, *rows, strict=True)]
    parts = _parts(widths) if tuple(left) == (0,) else [range(len(columns))]
    for number, part in enumerate(parts):
        if number:
            console.print()
        built = Table(box=None, pad_edge=False)
        for i in part:
            justify: Any = "left" if i in left else "right"
            built.add_column(Text(printable(columns[i])), justify=justify, overflow="fold")
        for k, row in enumerate(rows):
            built.add_row(
                *(Text(printable(row[i]), "bold" if (k, i) in bold else "") for i in part)
            )
        console.print(built)


def _parts(widths: Sequence[int]) -> list[list[int]]:
    """Return the indices of columns that fit side by side, the first among them every time."""
    parts = [[0]]
    used = widths[0]
    for i, width in enumerate(widths[1:], start=1):
        if used + 2 + width > console.width and len(parts[-1]) > 1:
            parts.append([0])
            used = widths[0]
        parts[-1].append(i)
        used += 2 + width
    return parts
