"""What a retrained group becomes, decided on validation samples: by sums worked out by hand."""

import math

import numpy as np
import pytest

from conftest import make_task
from lcia.decision.choice import Candidate, Measured, choose, quadratic_scale, standard_error
from lcia.decision.placing import hold_back


def measured(quality) -> Measured:
    """Answers of a quality: as sure of them as right in them."""
    values = np.array(quality, float)
    return Measured(losses=-np.log(values), given=values)


BEFORE = {"old": measured([0.8, 0.8, 0.8, 0.8])}


def candidate(name, old, new, **more) -> Candidate:
    return Candidate(name=name, measured={"old": measured(old), "new": measured(new)}, **more)


def chosen(*candidates, price=0.05, **more):
    return choose("new", list(candidates), BEFORE, price=price, **more)


def test_quality_is_the_mean_of_how_sure_and_of_how_right_an_answer_is():
    # certain of a right answer; even odds and half of it right; certain of another
    one = Measured(losses=np.array([0.0, math.log(2), 50.0]), given=np.array([1.0, 0.5, 0.0]))
    assert one.quality == pytest.approx([1.0, 0.5, 0.0])
    assert one.exact.tolist() == [1.0, 0.0, 0.0]


def test_answers_that_turn_over_are_seen_where_the_loss_is_not():
    """A task near chance: the mean loss falls, and three of four answers turn wrong."""
    before = {"old": Measured(losses=np.full(4, 0.36), given=np.ones(4))}
    turned = Measured(losses=np.full(4, 0.35), given=np.array([1.0, 0.0, 0.0, 0.0]))
    kept = Measured(losses=np.full(4, 0.37), given=np.ones(4))
    options = [
        Candidate(name=name, measured={"old": old, "new": measured([0.6] * 4)})
        for name, old in (("trained", turned), ("straight-0.5", kept))
    ]
    choice = choose("new", options, before, price=0.05)
    assert {row["name"]: row["harmed"] for row in choice.table}["trained"] == ["old"]
    assert choice.chosen == "straight-0.5"


def test_the_standard_error_is_that_of_a_paired_mean():
    # mean 2, squared deviations 1 + 1 + 1 + 1 over n - 1 = 3, over n = 4
    assert standard_error(np.array([1.0, 3.0, 1.0, 3.0])) == pytest.approx((4 / 3 / 4) ** 0.5)
    assert standard_error(np.array([5.0])) == 0


def test_a_candidate_that_harms_an_earlier_task_comes_after_one_that_does_not():
    harmful = candidate("trained", [0.5, 0.5, 0.5, 0.6], [0.9] * 4)  # higher mean: 0.7125
    harmless = candidate("straight-0.5", [0.8, 0.8, 0.8, 0.8], [0.5] * 4)  # 0.65
    choice = chosen(harmful, harmless)
    assert choice.chosen == "straight-0.5"
    assert {row["name"]: row["harmed"] for row in choice.table} == {
        "trained": ["old"],
        "straight-0.5": [],
    }


def test_a_fall_within_half_its_standard_error_is_no_harm():
    # falls 0.1, -0.1, 0.2, -0.1: mean 0.025, deviations give a standard error of 0.075
    noisy = candidate("trained", [0.7, 0.9, 0.6, 0.9], [0.9] * 4)
    other = candidate("straight-0.5", [0.8] * 4, [0.5] * 4)
    assert chosen(noisy, other).chosen == "trained"
    # falls 0.2, 0, 0.2, -0.1: mean 0.075 of 0.075
    assert chosen(candidate("trained", [0.6, 0.8, 0.6, 0.9], [0.9] * 4), other).chosen != "trained"


def test_a_sibling_is_opened_if_it_alone_harms_nothing():
    harmful = candidate("trained", [0.5, 0.5, 0.5, 0.6], [0.9] * 4)
    sibling = candidate("expand", [0.8] * 4, [0.9] * 4)
    assert chosen(harmful, sibling, price=0.3).chosen == "expand"


def test_it_is_opened_even_if_retraining_scores_a_little_higher():
    harmful = candidate("straight-0.5", [0.7] * 4, [0.9] * 4)  # 0.8, and lowers old by 0.1
    sibling = candidate("expand", [0.8] * 4, [0.76] * 4, parameters="trained")  # 0.78
    choice = chosen(harmful, sibling, price=0.05)
    assert (choice.chosen, choice.parameters) == ("expand", "trained")
    assert chosen(harmful, sibling, price=0.01).chosen == "straight-0.5"


@pytest.mark.parametrize(("price", "expected"), [(0.19, "expand"), (0.21, "trained")])
def test_else_a_sibling_has_to_be_worth_its_price(price, expected):
    retrained = candidate("trained", [0.8] * 4, [0.4] * 4)  # score 0.6
    sibling = candidate("expand", [0.8] * 4, [0.8] * 4)  # 0.8: higher by 0.2, without noise
    choice = chosen(retrained, sibling, price=price)
    assert choice.chosen == expected
    assert "0.200" in choice.why


def test_a_sibling_whose_prompts_routing_cannot_tell_is_not_opened():
    harmful = candidate("trained", [0.5, 0.5, 0.5, 0.6], [0.9] * 4)
    sibling = candidate("expand", [0.8] * 4, [0.9] * 4, told_apart=0.5)
    choice = chosen(harmful, sibling)
    assert choice.chosen == "trained"
    assert "cannot tell" in choice.why


def test_the_worst_task_counts_as_much_as_it_is_told_to():
    even = candidate("straight-0.5", [0.8] * 4, [0.6] * 4)  # mean 0.7, worst 0.6
    uneven = candidate("trained", [0.95] * 4, [0.5] * 4)  # mean 0.725, worst 0.5
    assert chosen(even, uneven).chosen == "trained"
    assert chosen(even, uneven, worst=1.0).chosen == "straight-0.5"


def test_tasks_without_samples_count_with_their_estimate():
    cheap = candidate("straight-0.5", [0.8] * 4, [0.5] * 4, estimate=0.01)
    dear = candidate("trained", [0.8] * 4, [0.9] * 4, estimate=0.3)
    assert chosen(cheap, dear).chosen == "trained"
    choice = chosen(cheap, dear, unmeasured=1)  # above the price: harm
    assert choice.chosen == "straight-0.5"
    assert choice.unmeasured == 1


def test_the_scale_of_the_estimate_is_fitted_through_zero():
    # minimises (2 - s)^2 + (5 - 2 s)^2: s = (2 + 10) / 5
    assert quadratic_scale(np.array([2.0, 5.0]), np.array([1.0, 2.0])) == pytest.approx(2.4)
    assert quadratic_scale(np.array([-1.0]), np.array([1.0])) == 0
    assert quadratic_scale(np.array([1.0]), np.array([0.0])) == 0


@pytest.mark.parametrize(
    ("samples", "share", "held"),
    [(39, 0.1, 0), (40, 0.1, 8), (112, 0.1, 12), (1000, 0.1, 64), (112, 0, 0), (48, 0.25, 12)],
)
def test_a_tenth_is_held_back_but_not_of_small_tasks(samples, share, held):
    task = make_task("letters", "Say the letter.", {"horse": "a"}, train=samples)
    lesson, kept = hold_back(task, share, seed=0)
    assert len(kept) == held
    assert sorted(map(id, (*lesson.train, *kept))) == sorted(map(id, task.train))
    assert lesson.test == task.test
