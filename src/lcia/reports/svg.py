"""Figures as SVG elements inside an HTML page, coloured by the page's style sheet."""

import io
import re
import warnings
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.figure import Figure

from lcia.reports.plots import GRID, INK, MUTED, SERIES, style

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
