import math

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.figure import Figure

from lcia.errors import ConfigError
from lcia.evaluation import AccuracyMatrix
from lcia.reports import StepRecord
from lcia.reports.plots import (
    compare_figure,
    draw_beta,
    draw_fallbacks,
    draw_loss,
    draw_scores,
    printable,
    reasons_of,
)

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def axes():
    return Figure().subplots()


def test_each_task_is_a_dotted_and_a_solid_line_of_its_scores(axes):
    matrix = AccuracyMatrix(tasks=("a", "b"), rows=((10.0, 20.0), (90.0, None), (80.0, 70.0)))
    draw_scores(axes, matrix)
    lines = [(line.get_linestyle(), *line.get_data()) for line in axes.lines]
    expected = [
        (":", [0, 1], [10, 90]),
        ("-", [1, 2], [90, 80]),
        (":", [0, 1, 2], [20, math.nan, 70]),
        ("-", [2], [70]),
    ]
    for (style, x, y), (expected_style, expected_x, expected_y) in zip(
        lines, expected, strict=True
    ):
        assert style == expected_style
        np.testing.assert_array_equal(x, expected_x)
        np.testing.assert_array_equal(y, expected_y)
    assert {text.get_text() for text in axes.texts} == {"a", "b"}


@pytest.mark.parametrize("scores", [[50.0] * 8, [0.0] * 8, [100.0] * 8, [3.0, 97.0, 98.0] * 2])
def test_labels_at_the_line_ends_do_not_overlap(axes, scores):
    tasks = tuple(f"t{i}" for i in range(len(scores)))
    rows = ((None,) * len(scores),) * len(scores) + (tuple(scores),)
    draw_scores(axes, AccuracyMatrix(tasks=tasks, rows=rows))
    places = sorted(text.get_position()[1] for text in axes.texts)
    assert len(places) == len(scores)
    assert min(np.diff(places)) >= 7.5 - 1e-9
    assert places[0] >= 0
    assert places[-1] <= 100


def test_loss_has_a_gap_between_tasks_and_none_within(axes):
    steps = [
        StepRecord(task=task, step=k, loss=float(k) if k != 2 else None)
        for task in "ab"
        for k in (1, 2, 3)
    ]
    draw_loss(axes, steps)
    x, y = axes.lines[0].get_data()
    np.testing.assert_array_equal(x, [1, 3, 3, 4, 6, 6])
    np.testing.assert_array_equal(y, [1, 3, math.nan, 1, 3, math.nan])


def test_many_steps_are_averaged_within_their_task(axes):
    steps = [StepRecord(task="a", step=k, loss=float(k)) for k in range(1, 1001)]
    draw_loss(axes, steps)
    x, y = axes.lines[0].get_data()
    blocks = [np.mean(block) for block in np.split(np.arange(1, 1000), range(3, 999, 3))]
    np.testing.assert_allclose(y[:-1], [*blocks, 1000])
    np.testing.assert_allclose(x[:-1], y[:-1])


def test_the_beta_band_spans_smallest_to_largest(axes):
    steps = [
        StepRecord(task="a", step=k, beta_mean=0.5, beta_min=0.1 * k, beta_max=0.9)
        for k in (1, 2, 3)
    ]
    draw_beta(axes, steps)
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(0.1)
    assert heights.max() == pytest.approx(0.9)


def test_fallbacks_are_stacked_in_percent_by_known_reason(axes):
    steps = [
        StepRecord(task="a", step=1, beta_mean=0.9, fallbacks={"new": 0.25, "no_drift": 0.5}),
        StepRecord(task="a", step=2, beta_mean=0.9, fallbacks={"first_step": 0.0}),
    ]
    assert reasons_of(steps) == ["no_drift", "new"]
    draw_fallbacks(axes, steps)
    tops = [area.get_paths()[0].vertices[:, 1].max() for area in axes.collections]
    assert tops == [50, 75]
    assert [text.get_text() for text in axes.get_legend().texts] == ["no_drift", "new"]


@pytest.mark.parametrize(
    ("text", "limit", "shown"),
    [
        ("short", 5, "short"),
        ("abcdefghij", 7, "abcd…ij"),
        ("a\x00b\nc", 9, "a\ufffdb\ufffdc"),
    ],
)
def test_printable(text, limit, shown):
    assert printable(text, limit=limit) == shown


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_comparison_is_the_same_file_each_time(tmp_path, suffix):
    matrix = AccuracyMatrix.start(["$a$", "b"]).append("$a$", {"$a$": 80.0, "b": 20.0})
    before = dict(rcParams)
    for name in ("one", "two"):
        compare_figure({"sequential": matrix, "lcia": matrix}, tmp_path / f"{name}.{suffix}")
    one, two = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in ("one", "two"))
    assert one == two
    assert one.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    assert dict(rcParams) == before


def test_a_comparison_needs_runs_and_a_known_format(tmp_path):
    with pytest.raises(ConfigError, match=r"x\.pdf.*\.png or \.svg"):
        compare_figure({"a": AccuracyMatrix.start(["a"])}, tmp_path / "x.pdf")
    with pytest.raises(ConfigError, match="at least one run"):
        compare_figure({}, tmp_path / "x.png")
