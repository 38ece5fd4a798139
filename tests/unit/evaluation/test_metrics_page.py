"""docs/metrics.md says what the code does."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from lcia.evaluation import MEASURES, METRICS
from lcia.registry import SCORERS

PAGE = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)


def test_every_example_prints_what_the_page_shows():
    assert len(EXAMPLES) == 2
    names = {}
    for code, shown in EXAMPLES:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        assert printed.getvalue() == shown


def test_the_sums_of_the_worked_example_are_right():
    sums = re.findall(r"^- ([a-z ]+): (.*) = ([−\d.]+)$", PAGE, re.MULTILINE)
    assert len(sums) == len(METRICS)
    results = dict(line.split(": ") for line in EXAMPLES[0][1].splitlines())
    for name, terms, total in sums:
        assert eval(terms.replace("−", "-")) == pytest.approx(
            float(total.replace("−", "-")), abs=0.005
        )
        assert float(results[name.replace(" ", "_")]) == float(total.replace("−", "-"))


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_stands_with_its_formula_and_direction(name):
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}`"))
    metric = METRICS[name]
    assert metric.formula in row
    assert row.endswith("| higher |" if metric.higher_is_better else "| lower |")


@pytest.mark.parametrize("name", [name for name in MEASURES if name not in METRICS])
def test_every_other_number_stands_with_its_formula_and_direction(name):
    measure = MEASURES[name]
    better = {True: "higher ", False: "lower ", None: ""}[measure.higher_is_better]
    assert f"| `{name}` | {measure.formula} | {better}|" in PAGE.splitlines()


def test_every_scorer_is_listed():
    assert set(re.findall(r"^\| `(\w+)` \| .* \| .* \|$", PAGE, re.MULTILINE)) >= {*SCORERS.builtin}
