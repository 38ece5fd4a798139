"""The page is parsed, not compared: what it says, that it is safe and that it stands alone."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from benchmarks import tables
from lcia.errors import ConfigError
from lcia.evaluation import METRICS, AccuracyMatrix
from lcia.reports import ReportData, SampleAnswer, StepRecord
from lcia.reports.html import render, write_report

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
        "assert not heavy, heavy; import lcia.reports.svg; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_benchmarks_page_is_regenerated_from_the_results_without_a_difference():
    assert tables.page() == tables.PAGE.read_text(encoding="utf-8")


def test_every_folder_of_results_is_on_the_page():
    files = tables.RESULTS.rglob("results.jsonl")
    assert {str(Path(f).parent.relative_to(tables.RESULTS)) for f in files} == set(tables.RECIPES)
