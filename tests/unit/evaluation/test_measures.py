"""Numbers beside the matrix, against sums by hand."""

import pytest

from lcia.evaluation.generate import Prediction
from lcia.evaluation.measures import averaging, general_ability, routing_accuracy


def prediction(task, group):
    return Prediction(
        task=task,
        sample="1",
        prompt="?",
        answers=("a",),
        prediction="a",
        score=1.0,
        group=group,
        adapter=None,
        similarity=1.0,
        reason="reached",
    )


def test_routing_is_right_where_the_group_learned_the_task():
    routed = [("a", "g1"), ("a", "g2"), ("b", "g2"), ("b", None)]
    predictions = [prediction(task, group) for task, group in routed]
    assert routing_accuracy(predictions, {"a": "g1", "b": "g2"}) == 50
    assert routing_accuracy(predictions, {}) is None
    assert routing_accuracy([], {"a": "g1"}) is None


def test_general_ability_is_the_mean_change():
    before = {"a": 50.0, "b": 20.0}
    assert general_ability(before, {"a": 40.0, "b": 24.0}) == pytest.approx(-3)
    assert general_ability({}, {}) is None


def test_averaging_has_a_horizon_of_one_over_the_mean_gain():
    found = averaging([0.9, 0.8], [0.5, 0.25])
    assert found["beta_mean"] == pytest.approx(0.85)
    assert found["horizon_steps"] == pytest.approx(1 / 0.15)
    assert found["fallback_share"] == pytest.approx(37.5)
    assert averaging([1.0], [0.0])["horizon_steps"] is None
    assert set(averaging([], []).values()) == {None}
