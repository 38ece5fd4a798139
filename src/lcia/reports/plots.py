"""Figures: scores over time, loss, balance weight and fallbacks over steps.

Drawn with matplotlib's object API: no global state, no display, usable from any thread.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from matplotlib import colormaps, rc_context, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from lcia.errors import ConfigError
from lcia.evaluation.matrix import AccuracyMatrix
from lcia.files import write_bytes
from lcia.reports.data import StepRecord

INK, MUTED, GRID = "#1c2127", "#5c6670", "#dfe3e8"
# After Okabe and Ito: distinguishable with every common colour blindness.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#c0649b", "#b07d00", "#3f97cf", "#7a5195", "#6b6f76")
REASONS = ("first_step", "no_drift", "no_curvature", "out_of_range", "not_finite")
_MARKERS = "osD^vPX*"
_MOST_POINTS = 400
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.labelcolor": MUTED,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "font.family": "sans-serif",
    "font.size": 8.5,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "savefig.dpi": 200,
    "text.color": INK,
    # A task may be called "$x$": names are shown, not typeset.
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "ytick.left": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "lcia",
}


@contextmanager
def style() -> Iterator[None]:
    """Apply the house style to figures made and saved inside."""
    with rc_context(_STYLE):
        yield


def save(figure: Figure, path: str | Path, *, dpi: float | None = None) -> None:
    """Write a figure, the same bytes each time; a PNG with a palette, in a third of the space.

    Args:
        figure: what is drawn.
        path: where to; the suffix is the format, ``.png`` or ``.svg``.
        dpi: dots per inch of a PNG; None: as the style says.
    """
    if Path(path).suffix == ".svg":
        figure.savefig(path, metadata={"Date": None})
        return
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=dpi or rcParams["savefig.dpi"])
    write_bytes(Path(path), with_palette(drawn.getvalue()))


def with_palette(png: bytes) -> bytes:
    """Return a picture of few colours as a PNG with 256 of them, the nearest."""
    small = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(small, "PNG", optimize=True)
    return small.getvalue()


def compare_figure(runs: Mapping[str, AccuracyMatrix], path: str | Path) -> None:
    """Write the scores over time of several runs side by side, as PNG or SVG.

    Args:
        runs: name of the run to its matrix, in the order shown.
        path: where to; the suffix is the format. The same runs give the same bytes.

    Raises:
        ConfigError: the suffix is neither ``.png`` nor ``.svg``, or there are no runs.
    """
    path = Path(path)
    if path.suffix not in (".png", ".svg") or not runs:
        raise ConfigError(f"{path}: a figure compares at least one run, as .png or .svg.")
    with style():
        figure = Figure(figsize=(4.6 * len(runs), 3.3), facecolor="white")
        panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
        for axes, (name, matrix) in zip(panels, runs.items(), strict=True):
            axes.set_title(printable(name, limit=44))
            draw_scores(axes, matrix)
        save(figure, path)


def similarity_figure(tasks: Sequence[str], values: Any, path: str | Path) -> None:
    """Write the similarity of every task to every other as a heat map, as PNG or SVG.

    Args:
        tasks: names, at least one.
        values: similarities in [0, 1], shape (tasks, tasks); row: the task that asks.
        path: where to; the suffix is the format.

    Raises:
        ConfigError: the suffix is neither ``.png`` nor ``.svg``.
    """
    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise ConfigError(f"{path}: expected a file name that ends in .png or .svg.")
    names = [printable(task, limit=22) for task in tasks]
    side = 2.2 + 0.42 * len(names)
    with style(), rc_context({"axes.grid": False}):
        figure = Figure(figsize=(side + 0.4, side), facecolor="white")
        axes = figure.subplots()
        axes.imshow(values, cmap="Blues", vmin=0, vmax=1)
        axes.set_title("Similarity of instructions")
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
        for row, cells in enumerate(values):
            for column, value in enumerate(cells):
                colour = "white" if value > 0.6 else INK
                label = f"{value:.2f}"
                axes.text(column, row, label, ha="center", va="center", color=colour, fontsize=7)
        save(figure, path)


def draw_scores(axes: Axes, matrix: AccuracyMatrix) -> None:
    """Draw the score of each task over the tasks learned: dotted before it is learned itself."""
    count = len(matrix.tasks)
    few = count <= len(SERIES)
    ends: list[tuple[float, str, str]] = []
    for i, task in enumerate(matrix.tasks):
        scores = [math.nan if (score := row[i]) is None else score for row in matrix.rows]
        colour = SERIES[i] if few else _gradient(i, count)
        _draw_task(axes, scores, learned_at=i + 1, colour=colour, marker=_MARKERS[i] if few else "")
        if few and not math.isnan(scores[-1]):
            ends.append((scores[-1], printable(task, limit=22), colour))
    axes.set_xlabel("tasks learned")
    axes.set_xticks(range(0, len(matrix.rows), max(1, matrix.learned // 10)))
    axes.set_xlim(-0.15, max(matrix.learned, 1) + 0.15)
    _percent_axis(axes)
    axes.set_ylim(-2, 102)
    if few:
        _label_ends(axes, ends)
    else:
        _explain_gradient(axes, count)


def draw_loss(axes: Axes, steps: Sequence[StepRecord]) -> None:
    """Draw the training loss over all steps."""
    axes.plot(*_points(steps, lambda step: step.loss), color=SERIES[0], linewidth=1.1)
    axes.set_ylim(bottom=0)
    _mark_tasks(axes, steps)


def draw_beta(axes: Axes, steps: Sequence[StepRecord]) -> None:
    """Draw the mean balance weight over all steps within the band from smallest to largest."""
    x, low = _points(steps, lambda step: step.beta_min, min)
    x_high, high = _points(steps, lambda step: step.beta_max, max)
    if x == x_high:
        axes.fill_between(x, low, high, color=SERIES[0], alpha=0.2, linewidth=0)
    axes.plot(*_points(steps, lambda step: step.beta_mean), color=SERIES[0], linewidth=1.3)
    axes.set_ylim(-0.02, 1.02)
    _mark_tasks(axes, steps)


def draw_fallbacks(axes: Axes, steps: Sequence[StepRecord]) -> None:
    """Draw the share of tensors that fell back, stacked by reason, over all steps."""
    reasons = reasons_of(steps)
    x: list[float] = []
    shares = []
    for reason in reasons:
        x, share = _points(steps, partial(_share, reason=reason))
        shares.append([100 * value for value in share])
    order = [*REASONS, *sorted(set(reasons) - {*REASONS})]
    colours = [SERIES[order.index(reason) % len(SERIES)] for reason in reasons]
    axes.stackplot(x, shares, labels=reasons, colors=colours, alpha=0.85, linewidth=0)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.06), ncols=3, borderpad=0, fontsize=8)
    _percent_axis(axes)
    axes.set_ylim(0, 100)
    _mark_tasks(axes, steps)


def reasons_of(steps: Sequence[StepRecord]) -> list[str]:
    """Return the reasons for fallbacks that occur, the known ones first."""
    found = {reason for step in steps for reason, share in step.fallbacks.items() if share}
    return [reason for reason in REASONS if reason in found] + sorted(found - {*REASONS})


def printable(text: str, *, limit: int) -> str:
    """Return ``text`` without control characters, its middle left out beyond ``limit``."""
    text = "".join(c if c.isprintable() else "\ufffd" for c in text)
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 3
    return f"{text[: limit - 1 - tail]}…{text[len(text) - tail :]}"


def spread_out(heights: Sequence[float], *, gap: float, ceiling: float) -> list[float]:
    """Return rising heights pushed apart: from the bottom up, then down from the ceiling."""
    places: list[float] = []
    for height in heights:
        places.append(max(height, places[-1] + gap) if places else height)
    for k in reversed(range(len(places))):
        places[k] = min(places[k], ceiling)
        ceiling = places[k] - gap
    return places


def _draw_task(
    axes: Axes, scores: list[float], *, learned_at: int, colour: Any, marker: str
) -> None:
    """Draw one line; without a marker it is one of many, thin and without its dotted part."""
    x = range(len(scores))
    split = learned_at + 1
    if marker:
        axes.plot(x[:split], scores[:split], ":", color=colour, linewidth=1.0)
    axes.plot(
        x[learned_at:],
        scores[learned_at:],
        color=colour,
        marker=marker or ".",
        markersize=4,
        linewidth=1.6 if marker else 1.0,
        clip_on=False,
        # Unclipped and perhaps without a point, the line would confuse the layout.
        in_layout=False,
    )


def _label_ends(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    places = spread_out([score for score, _, _ in sorted(ends)], gap=7.5, ceiling=100)
    for place, (_, name, colour) in zip(places, sorted(ends), strict=True):
        axes.text(
            1.02, place, name, color=colour, va="center", transform=axes.get_yaxis_transform()
        )


def _gradient(i: int, count: int) -> Any:
    return colormaps["viridis"](0.05 + 0.85 * i / (count - 1))


def _explain_gradient(axes: Axes, count: int) -> None:
    for i, place in ((0, 100), (count // 2, 92), (count - 1, 84)):
        axes.text(
            1.02,
            place,
            f"— task {i + 1}",
            color=_gradient(i, count),
            va="center",
            transform=axes.get_yaxis_transform(),
        )


def _percent_axis(axes: Axes) -> None:
    axes.set_yticks(range(0, 101, 25), [f"{tick} %" for tick in range(0, 101, 25)])


def _share(step: StepRecord, *, reason: str) -> float | None:
    # A step without an average has no fallbacks either: a gap, not 0.
    plain = step.beta_mean is None and not step.fallbacks
    return None if plain else step.fallbacks.get(reason, 0.0)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _points(
    steps: Sequence[StepRecord],
    value: Callable[[StepRecord], float | None],
    combine: Callable[[Sequence[float]], float] = _mean,
) -> tuple[list[float], list[float]]:
    """Return x and y with a gap between tasks; neighbouring steps combined if there are many."""
    stride = math.ceil(len(steps) / _MOST_POINTS)
    x: list[float] = []
    y: list[float] = []
    for _, numbered in groupby(enumerate(steps, 1), key=lambda pair: pair[1].task):
        known = [(at, v) for at, step in numbered if (v := value(step)) is not None]
        for k in range(0, len(known), stride):
            places, values = zip(*known[k : k + stride], strict=True)
            x.append(_mean(places))
            y.append(combine(values))
        x.append(x[-1] if x else math.nan)
        y.append(math.nan)
    return x, y


def _mark_tasks(axes: Axes, steps: Sequence[StepRecord]) -> None:
    runs = [(task, sum(1 for _ in run)) for task, run in groupby(step.task for step in steps)]
    start = 0.5
    for number, (task, length) in enumerate(runs, 1):
        if number > 1:
            axes.axvline(start, color=MUTED, linewidth=0.7, linestyle=(0, (2, 2)))
        name = printable(task, limit=max(80 // len(runs), 6)) if len(runs) <= 8 else str(number)
        axes.text(
            start + length / 2,
            1.01,
            name,
            color=MUTED,
            fontsize=7.5,
            ha="center",
            va="bottom",
            transform=axes.get_xaxis_transform(),
        )
        start += length
    axes.set_xlim(0.5, start)
    axes.set_xlabel("step")


_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid"} | {
    colour: f"--s{i}" for i, colour in enumerate(SERIES, 1)
}


def inline_svg(
    draw: Callable[..., None],
    *data: Any,
    key: str,
    label: str,
    size: tuple[float, float] = (5.8, 2.9),
) -> str:
    """Draw one chart and return it as an ``<svg>`` element for an HTML page.

    The colours of ``plots`` become the page's CSS variables, so that one chart serves the light and
    the dark scheme; text stays text.

    Args:
        draw: called with the axes and ``data``.
        data: passed to ``draw``.
        key: unique within the page; keeps the element ids of several charts apart.
        label: what the chart shows, for screen readers.
        size: width and height in inches, at which 8.5 points are 8.5 points.

    Returns:
        The element; equal for equal arguments.
    """
    buffer = io.BytesIO()
    with style(), rc_context({"svg.hashsalt": key}), warnings.catch_warnings():
        # The page's fonts draw the text, whatever matplotlib's own can show.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=size)
        draw(figure.subplots(), *data)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _for_html(buffer.getvalue(), label=label)


def _for_html(source: bytes, *, label: str) -> str:
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(source)
    used = set(re.findall(r"#(\w+)[\")]", source.decode("utf-8")))
    for parent in root.iter():
        for child in list(parent):
            # A style sheet inside the element would apply to the whole page.
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
        if parent.get("id") not in used:
            parent.attrib.pop("id", None)
        if css := parent.get("style"):
            parent.set("style", re.sub(r"#[0-9a-f]{6}", _variable, css))
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.set("role", "img")
    root.set("aria-label", label)
    return ElementTree.tostring(root, encoding="unicode")


def _variable(match: re.Match[str]) -> str:
    name = _VARIABLES.get(match[0])
    return f"var({name})" if name else match[0]
