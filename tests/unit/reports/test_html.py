"""The page is parsed, not compared: what it says, that it is safe and that it stands alone."""

import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.figure import Figure
from PIL import Image

from benchmarks import leaderboard, tables
from lcia.errors import ConfigError
from lcia.evaluation import METRICS, AccuracyMatrix
from lcia.experiments.finished import find_runs
from lcia.reports import GroupRecord, ReportData, RunRecord, SampleAnswer, StepRecord
from lcia.reports.html import render, write_report
from lcia.reports.plots import (
    compare_figure,
    draw_beta,
    draw_fallbacks,
    draw_loss,
    draw_scores,
    printable,
    reasons_of,
)


def build_matrix(tasks):
    """Task i scores 90 when learned and a little less after each later task; 10 before."""
    loss = 5.0 if len(tasks) < 10 else 2.0
    matrix = AccuracyMatrix.start(tasks, dict.fromkeys(tasks, 10.0))
    for t, task in enumerate(tasks, 1):
        scores = {name: 90 - loss * (t - i) for i, name in enumerate(tasks[:t], 1)}
        matrix = matrix.append(task, scores)
    return matrix


def build_steps(tasks, *, count=5):
    return tuple(
        StepRecord(
            task=task,
            step=step,
            loss=math.exp(-step),
            beta_mean=0.9,
            beta_min=0.8,
            beta_max=0.99,
            fallbacks={"first_step": 1.0} if step == 1 else {"out_of_range": 0.25},
        )
        for task in tasks
        for step in range(1, count + 1)
    )


@pytest.fixture
def make_run():
    def make(method="lcia", tasks=("dates", "words"), **fields):
        tasks = tuple(tasks)
        defaults = {
            "matrix": build_matrix(tasks),
            "steps": build_steps(tasks),
            "groups": (
                GroupRecord(
                    id="g1",
                    tasks=tasks,
                    instructions=tuple(f"Say {k}." for k in range(5)),
                    adapter_bytes=1_843_200,
                ),
            ),
            "routing": {task: {"g1": 0.75, "g2": 0.25} for task in tasks},
            "samples": (
                SampleAnswer(
                    prompt="When?",
                    answer="2021-03-03",
                    expected="2021-03-04",
                    group="g1",
                    similarity=0.97312,
                    reason="most similar",
                ),
            ),
        }
        return RunRecord(method=method, **(defaults | fields))

    return make


pytestmark = pytest.mark.filterwarnings("error")
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Collects tags, attributes and table rows; checks that every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.rows, self.words = [], [], [], []
        self.open = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if {"td", "th"} & {*self.open[-3:]}:
            self.rows[-1][-1] += data

    def row(self, start):
        found = [[" ".join(cell.split()) for cell in row] for row in self.rows]
        return next(row for row in found if row and row[0].startswith(start))


def page_of(*runs, **fields):
    return Page(render(ReportData(title="Skills", runs=runs, **fields)))


def test_the_matrix_is_a_table_of_its_values(make_run):
    page = page_of(make_run())
    assert page.row("after learning")[1:] == ["1 dates", "2 words", "mean so far"]
    assert page.row("0 before") == ["0 before learning", "10.0", "10.0", "–"]
    assert page.row("1 dates") == ["1 dates", "90.0", "–", "90.0"]
    assert page.row("2 words") == ["2 words", "85.0", "90.0", "87.5"]


def test_metrics_stand_with_their_formulas_and_the_better_method_is_strong(make_run):
    worse = make_run("sequential", matrix=AccuracyMatrix.start().append("a", {"a": 50.0}))
    text = render(ReportData(title="x", runs=(worse, make_run())))
    page = Page(text)
    assert page.row("Average accuracy")[1:] == ["50.00", "87.50", "mean over i of R[T, i]"]
    assert page.row("Forgetting")[1:3] == ["–", "5.00"]
    assert "<strong>87.50</strong>" in text
    assert "<strong>50.00</strong>" not in text
    for metric in METRICS.values():
        assert page.row(metric.label)[-1] == metric.formula


def test_training_shows_the_horizon_beside_beta(make_run):
    page = page_of(make_run())
    training = next(row for row in page.rows if len(row) == 6 and "dates" in row[0])
    assert [cell.strip() for cell in training][1:] == [
        "5",
        "0.007",
        "0.9000",
        "10.0 steps",
        "40.0 %",
    ]


def test_groups_routing_samples_settings_and_versions_are_shown(make_run):
    page = page_of(
        make_run(),
        settings={"rule": {"name": "release"}, "seeds": [0, 1], "empty": {}},
        versions={"torch": "2.13.0"},
        date="2026-01-31",
    )
    text = " ".join(" ".join(page.words).split())
    for part in (
        "adapter 1.8 MB",
        "2 tasks · 5 instructions",
        "Say 4.",
        "75 %",
        "g1 · similarity 0.973 · most similar",
        "2021-03-04",
        "rule.name release",
        "seeds [0, 1]",
        "empty {}",
        "torch 2.13.0",
        "lcia report · 2026-01-31",
    ):
        assert part in text


def test_everything_from_outside_is_escaped(make_run):
    evil = "<script>alert(1)</script>-->\"'&$x$]]>"
    tasks = (evil, "b\x00\ud800日本")
    sample = SampleAnswer(prompt=evil, answer=evil, group=evil, reason=evil)
    steps = (StepRecord(task=evil, step=1, loss=1.0, beta_mean=0.5, fallbacks={evil: 1.0}),)
    text = render(
        ReportData(
            title=evil,
            runs=(make_run(method=evil, tasks=tasks, samples=(sample,), steps=steps),),
            settings={evil: evil},
            versions={evil: evil},
            date=evil,
        )
    )
    page = Page(text)
    assert "<script" not in text
    assert "script" not in page.tags
    assert page.words.count(evil) >= 9
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_the_page_needs_no_network(make_run):
    text = render(ReportData(title="x", runs=(make_run(),)))
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & {*page.tags}
    targets = [v for _, name, v in page.attributes if name in ("src", "href", "xlink:href")]
    assert all(value.startswith("#") for value in targets)
    assert not re.search(r"@import|url\((?!#)", text)


def test_ids_are_unique_and_every_reference_has_its_target(make_run):
    page = page_of(make_run("a"), make_run("b"))
    ids = [value for _, name, value in page.attributes if name == "id"]
    used = {v[1:] for _, name, v in page.attributes if name == "xlink:href"}
    used |= {v[5:-1] for _, _, v in page.attributes if v and v.startswith("url(#")}
    assert len(ids) == len(set(ids))
    assert used
    assert used <= set(ids)


def test_the_charts_take_the_colours_of_the_page(make_run):
    page = page_of(make_run())
    assert page.tags.count("svg") == 4
    styles = " ".join(value for _, name, value in page.attributes if name == "style")
    assert "var(--s1)" in styles
    assert not re.search(r"#[0-9a-f]{6}", styles)


def test_what_a_method_does_not_have_is_left_out(make_run):
    plain = (StepRecord(task="dates", step=1), StepRecord(task="dates", step=2, loss=0.5))
    page = page_of(make_run(steps=plain, groups=(), routing={}, samples=()))
    text = " ".join(page.words)
    assert page.tags.count("svg") == 2
    assert "Balance weight" not in text
    assert "Fallbacks by reason" not in text
    assert "Sample answers" not in text


@pytest.mark.parametrize(
    "matrix",
    [
        AccuracyMatrix.start(),
        AccuracyMatrix.start(["a", "b"]),
        AccuracyMatrix.start(["a"]).append("a", {}),
        AccuracyMatrix.start(["a"]).append("a", {"a": 100.0}),
    ],
)
def test_small_and_empty_matrices_make_a_page(make_run, matrix):
    page = page_of(make_run(matrix=matrix, steps=()))
    assert page.row("Forgetting")[1] == "–"


def test_thirty_tasks_with_long_names_make_a_page(make_run):
    tasks = [f"superni/task{i:03d}_" + "long" * 30 for i in range(30)]
    page = page_of(make_run(tasks=tasks))
    assert len(page.row("after learning")) == 32
    assert ("table", "class", "heat many") in page.attributes


def test_many_steps_do_not_make_a_big_page(make_run):
    def steps(count):
        return tuple(StepRecord(task="a", step=k, loss=1 / k) for k in range(1, count + 1))

    small, large = (
        len(render(ReportData(title="x", runs=(make_run(steps=steps(n)),)))) for n in (400, 40_000)
    )
    assert large < 1.2 * small


def test_the_same_data_give_the_same_bytes(make_run, tmp_path):
    for name in ("a.html", "b.html"):
        write_report(
            ReportData(title="\ud800", runs=(make_run("lcia"), make_run("b"))), tmp_path / name
        )
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_runs_need_names_of_their_own(make_run):
    with pytest.raises(ConfigError, match=r"found \['a', 'a'\]"):
        render(ReportData(title="x", runs=(make_run("a"), make_run("a"))))
    with pytest.raises(ConfigError, match="at least one"):
        render(ReportData(title="x", runs=()))


def test_importing_the_reports_is_light():
    code = (
        "import sys, lcia.evaluation, lcia.evaluation.scorers, lcia.reports.html;"
        "heavy = {'torch', 'matplotlib', 'jinja2', 'nltk', 'numpy'} & set(sys.modules);"
        "assert not heavy, heavy; import lcia.reports.plots; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_benchmarks_page_is_regenerated_from_the_results_without_a_difference():
    assert tables.page() == tables.PAGE.read_text(encoding="utf-8")
    assert leaderboard.page(tables.RECIPES) == leaderboard.PAGE.read_text(encoding="utf-8")


def test_the_leaderboard_says_of_every_run_what_it_keeps_and_cost_the_best_first():
    for name in tables.RECIPES:
        runs, _ = find_runs([tables.RESULTS / name])
        table = leaderboard.table(name, runs)
        assert len(table.rows) == len({run.label for run in runs})
        found = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        scores = [float(row["Avg.ACC"].partition(" ")[0].replace("−", "-")) for row in found]
        assert scores == sorted(scores, reverse=True)
        for row in found:
            own = [run for run in runs if run.label == row["label"]]
            assert row["method"] == own[0].method
            kept = {run.metrics["stored_samples"] for run in own}
            assert (row["keeps"] == "0") == (kept == {0})
            assert float(row["minutes"]) == pytest.approx(
                sum(run.metrics["seconds"] for run in own) / len(own) / 60, abs=0.5
            )


def test_the_frontier_is_drawn_from_the_results(tmp_path):
    points = leaderboard.frontier()
    assert points["sequential"][2] == 0
    shares = {label: share for label, (_, _, share) in points.items()}
    assert shares["lcia-before"] == pytest.approx(12.5, abs=0.1)
    leaderboard.draw(points, tmp_path / "a.png")
    leaderboard.draw(points, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").stat().st_size < 60_000


def test_readme_holds_the_evidence_of_the_results_and_is_short():
    text = tables.README.read_text(encoding="utf-8")
    assert tables.readme() == text
    assert len(text.splitlines()) <= 120


def test_every_folder_of_results_is_on_the_page():
    files = tables.RESULTS.rglob("results.jsonl*")
    assert {str(Path(f).parent.relative_to(tables.RESULTS)) for f in files} == set(tables.RECIPES)


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
    if suffix == "png":
        with Image.open(tmp_path / "one.png") as image:
            assert image.mode == "P", "colours from a palette"
            assert image.width > 1500
    assert dict(rcParams) == before


def test_a_comparison_needs_runs_and_a_known_format(tmp_path):
    with pytest.raises(ConfigError, match=r"x\.pdf.*\.png or \.svg"):
        compare_figure({"a": AccuracyMatrix.start(["a"])}, tmp_path / "x.pdf")
    with pytest.raises(ConfigError, match="at least one run"):
        compare_figure({}, tmp_path / "x.png")
