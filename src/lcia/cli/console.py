"""What the verbs print: tables, JSON, and how far they are.

A bar with rate and time left on a terminal, next to nothing elsewhere.
"""

import json
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task
from rich.table import Table
from rich.text import Text

from lcia.errors import escaped, printable
from lcia.reports.numbers import duration, size


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


SELDOM_S = 30.0
"""Where there is no terminal, training says a line at most this often."""


class Bar:
    """One bar, for one piece of work after another; silent where there is no terminal.

    Args:
        quiet: show nothing, for ``--json``.
        sizes: what is counted is bytes.
    """

    def __init__(self, *, quiet: bool = False, sizes: bool = False) -> None:
        self.sizes = sizes
        self._progress: Progress | None = None
        if console.is_terminal and not quiet:
            columns = (SpinnerColumn(), _What(), BarColumn(bar_width=20), _Pace(self))
            self._progress = Progress(*columns, console=console, transient=True)
        self._what: str | None = None

    def __enter__(self) -> "Bar":
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    @property
    def is_shown(self) -> bool:
        """Whether there is a terminal to show it on."""
        return self._progress is not None

    def show(self, what: str, done: int, total: int | None, note: str = "") -> None:
        """Show how much is done of a piece of work; another text is another piece.

        Args:
            what: is being done.
            done: how much of it.
            total: how much there is; None: nobody knows.
            note: shown behind.
        """
        if self._progress is None:
            return
        if what != self._what:
            for task in self._progress.task_ids:
                self._progress.remove_task(task)
            self._progress.add_task(what, total=total, note=note)
            self._what = what
        self._progress.update(self._progress.task_ids[0], completed=done, total=total, note=note)

    def amount(self, value: float) -> str:
        """Write what is counted."""
        if self.sizes:
            return size(round(value))
        return f"{value:.0f}" if value >= 10 or value == round(value) else f"{value:.1f}"


class _What(ProgressColumn):
    """What is being done, as it is: brackets in a task's name are no markup."""

    def render(self, task: Task) -> Text:
        return Text(printable(task.description))


class _Pace(ProgressColumn):
    """How much is done of how much, how fast, and how long it will take."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        super().__init__()

    def render(self, task: Task) -> Text:
        said = []
        if task.total is not None:
            said.append(f"{self.bar.amount(task.completed)} of {self.bar.amount(task.total)}")
        if task.speed:
            said.append(f"{self.bar.amount(task.speed)} per s")
        if task.time_remaining is not None and task.speed:
            said.append(f"{duration(task.time_remaining)} left")
        return Text("  ".join([*said, printable(task.fields["note"])]))


class LearningProgress:
    """Shows the events of learning: a bar on a terminal, a line now and then elsewhere.

    Args:
        quiet: show nothing, for ``--json``.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._bar = Bar(quiet=quiet)
        self._last_line = time.monotonic()
        self._started: float | None = None
        self._tasks_done = 0
        self._tasks_total = 0

    def __enter__(self) -> "LearningProgress":
        self._bar.__enter__()
        self._bar.show("starting", 0, None)
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.__exit__(*exception)

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
        self._move(what, event["done"], event["total"])

    def _on_step(self, event: Mapping[str, Any]) -> None:
        beta = event.get("ema/beta_mean")
        shown = "" if beta is None else f"  β {beta:.3f}"
        note = f"loss {event['loss']:.3f}{shown}"
        self._move(f"{event['task']}: steps", event["step"], event["steps"], note)

    def _on_learned(self, event: Mapping[str, Any]) -> None:
        scores = "  ".join(f"{task} {score:.1f}" for task, score in event["scores"].items())
        self.say(f"    scores: {scores}" if scores else "    kept until the last task comes")
        self._tasks_done += 1
        left = self._tasks_total - self._tasks_done
        if self._started is not None and left > 0:
            pace = (time.monotonic() - self._started) / self._tasks_done
            self.say(f"    {left} tasks to go, about {duration(pace * left)}")

    def _move(self, what: str, done: int, total: int, note: str = "") -> None:
        self._bar.show(what, done, total, note)
        if not self._bar.is_shown and time.monotonic() - self._last_line >= SELDOM_S:
            self._last_line = time.monotonic()
            self.say(f"    {what} {done} of {total}" + (note and f"  {note}"))
