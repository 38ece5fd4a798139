"""What the verbs print: progress while learning, tables, JSON."""

import json
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from lcia.errors import escaped, printable
from lcia.reports.numbers import duration


class _Terminal(Console):
    """A console that shows control characters in texts instead of obeying them."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does."""
        super().print(*(escaped(o) if isinstance(o, str) else o for o in objects), **options)


console = _Terminal(highlight=False)
_ESCAPES = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}
"""Control characters that JSON leaves as they are."""

QUIET_S = 5.0
"""Where there is no terminal, a line at most this often."""


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


class LearningProgress:
    """Shows the events of learning: one moving line on a terminal, lines elsewhere.

    Args:
        quiet: show nothing, for ``--json``.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._status: Status | None = None
        self._last_line = 0.0
        self._started: float | None = None
        self._tasks_done = 0
        self._tasks_total = 0

    def __enter__(self) -> "LearningProgress":
        if console.is_terminal and not self.quiet:
            self._status = console.status("starting")
            self._status.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show one event."""
        if not self.quiet:
            show = getattr(self, f"_on_{event['event']}", None)
            if show is not None:
                show(event)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if not self.quiet:
            console.print(text, markup=False)

    def _on_started(self, event: Mapping[str, Any]) -> None:
        if self._started is None:
            self._started, self._tasks_total = time.monotonic(), event["tasks_left"]
        self.say(f"\n{event['run']}: {', '.join(event['tasks'])}")

    def _on_grouped(self, event: Mapping[str, Any]) -> None:
        similarity = f", similarity {event['similarity']:.2f}"
        how = {
            "reuse": f"reuses group {event['group']}{similarity}",
            "expand": f"opens group {event['group']}{similarity} to the nearest",
            "first_group": f"opens group {event['group']}",
        }[event["reason"]]
        self.say(f"  {event['task']}: {how}")

    def _on_answering(self, event: Mapping[str, Any]) -> None:
        what = {
            "base": "scoring the base model on it",
            "current": "scoring the assistant before learning it",
            "after": "scoring all tasks learned",
        }[event["what"]]
        self._move(f"{what}: {event['done']} of {event['total']}", last=False)

    def _on_step(self, event: Mapping[str, Any]) -> None:
        beta = event.get("ema/beta_mean")
        shown = "" if beta is None else f"  β {beta:.3f}"
        self._move(
            f"{event['task']}: step {event['step']}/{event['steps']}  "
            f"loss {event['loss']:.3f}{shown}  {duration(event['eta_s'])} left",
            last=event["step"] == event["steps"],
        )

    def _on_learned(self, event: Mapping[str, Any]) -> None:
        scores = "  ".join(f"{task} {score:.1f}" for task, score in event["scores"].items())
        self.say(f"    scores: {scores}" if scores else "    kept until the last task comes")
        self._tasks_done += 1
        left = self._tasks_total - self._tasks_done
        if self._started is not None and left > 0:
            pace = (time.monotonic() - self._started) / self._tasks_done
            self.say(f"    {left} tasks to go, about {duration(pace * left)}")

    def _move(self, text: str, *, last: bool) -> None:
        if self._status is not None:
            self._status.update(text)
        elif last or time.monotonic() - self._last_line >= QUIET_S:
            self._last_line = time.monotonic()
            self.say(f"    {text}")
