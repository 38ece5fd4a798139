"""Ten steps of two tasks by every method: a change of a loss is meant, or it is a fault."""

import json

import pytest

from golden_curves import GOLDEN, configure, curves
from lcia.learner import ContinualLearner
from lcia.registry import METHODS

EXPECTED = json.loads(GOLDEN.read_text(encoding="utf-8"))
TRAINED = [name for name in METHODS.builtin if METHODS.get(name).trains]


def test_every_method_has_its_curve():
    assert sorted(EXPECTED) == sorted(TRAINED)


@pytest.mark.parametrize("name", TRAINED)
def test_losses_are_those_of_the_golden_curve(name, host, tiny_model, tmp_path, colours, shades):
    learner = ContinualLearner.create(tmp_path / "a", configure(tiny_model, name), host=host)
    found = curves(learner, [colours, shades])
    for task, losses in EXPECTED[name].items():
        assert len(losses) == 10
        # Sums are added up in another order on another processor.
        assert found[task] == pytest.approx(losses, rel=1e-4)


def test_methods_that_protect_differ_from_plain_training_in_the_second_task_only():
    plain = EXPECTED["sequential"]
    for name in ("l2", "lwf", "ewc", "lcia_paper", "fixed_ema"):
        assert EXPECTED[name]["colours"] == pytest.approx(plain["colours"], rel=1e-4), name
    for name in ("l2", "lwf", "ewc"):
        assert EXPECTED[name]["shades"] != pytest.approx(plain["shades"], rel=1e-4), name
