"""The examples that docs/ema.md shows run, and are the ones it shows."""

import importlib.util
import runpy
from pathlib import Path

import pytest

from lcia.registry import RULES

ROOT = Path(__file__).parents[3]
needs_trl = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="trl is not installed (pip install lcia[test])"
)
DOCS = (ROOT / "docs" / "ema.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("example", "says"),
    [
        ("ema_own_loop", "weight of theta*"),
        ("ema_attach", "50 updates"),
        ("ema_trainer", "20 steps"),
        pytest.param("ema_trl", "20 steps", marks=needs_trl),
    ],
)
def test_the_example_runs_and_is_linked(example, says, capsys):
    runpy.run_path(str(ROOT / "examples" / f"{example}.py"))
    assert says in capsys.readouterr().out
    assert f"examples/{example}.py" in DOCS


def test_every_rule_is_documented():
    assert all(f"`{name}`" in DOCS for name in RULES.builtin)
