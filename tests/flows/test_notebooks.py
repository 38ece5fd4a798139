"""The notebooks run from their first cell to their last, in a kernel, and show what they say."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def told(tmp_path):
    """Run a notebook in an empty folder; return what each of its code cells printed and drew."""

    def run(name):
        notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
        NotebookClient(notebook, timeout=900, resources={"metadata": {"path": tmp_path}}).execute()
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        return [
            "".join(o.get("text", "") for o in cell.outputs if o.get("name") == "stdout")
            + "".join("(picture)" for o in cell.outputs if "image/png" in o.get("data", {}))
            for cell in cells
        ]

    return run


def test_the_notebook_on_averages_computes_the_papers_formula(told):
    *_, kept, plot, shares, by_hand = told("dynamic_ema")
    figures = {line[:12].strip(): line.split() for line in kept.splitlines()[1:]}
    plain, release = figures["plain"], figures["release"]
    assert int(plain[-2]) < 70 < int(plain[-1])  # the first task is overwritten
    assert int(release[-4]) > int(plain[-2])  # and less so in an average that remembers
    assert plot == "(picture)"
    assert re.fullmatch(r"paper \{.*\}\nrelease \{.*'out_of_range': '\d+ %'\}\n", shares)
    steps = re.findall(r"step \d: by hand (\S+), lcia (\S+)", by_hand)
    assert len(steps) == 4
    assert all(ours == theirs for ours, theirs in steps)
    assert any(ours != "0.9900" for ours, _ in steps)  # the closed form, not its fallback


def test_the_notebook_on_three_tasks_forgets_nothing(told):
    shown, learned, kept, chosen, answered = told("three_tasks")
    assert shown.count(" -> ") == 3
    groups = re.findall(r"group (g\d), 0 before", learned)
    assert groups[0] != groups[1]
    accuracy, forgetting = re.search(r"accuracy (\S+) %, forgetting (\S+) points", kept).groups()
    assert float(accuracy) > 70
    assert float(forgetting) < 10
    assert kept.endswith("(picture)")
    assert chosen.count("<-") == 1
    assert "expand " in chosen
    assert re.findall(r"\(group (g\d), reached\)", answered) == groups
