"""What a retrained group becomes, decided on validation losses: by sums worked out by hand."""

import numpy as np
import pytest

from lcia.decision.choice import Candidate, choose, quadratic_scale, standard_error

BEFORE = {"old": np.array([1.0, 1.0, 1.0, 1.0])}


def candidate(name, old, new, **more) -> Candidate:
    losses = {"old": np.array(old, float), "new": np.array(new, float)}
    return Candidate(name=name, losses=losses, **more)


def chosen(*candidates, price=0.05, **more):
    return choose("new", list(candidates), BEFORE, price=price, **more)


def test_the_standard_error_is_that_of_a_paired_mean():
    # mean 2, squared deviations 1 + 1 + 1 + 1 over n - 1 = 3, over n = 4
    assert standard_error(np.array([1.0, 3.0, 1.0, 3.0])) == pytest.approx((4 / 3 / 4) ** 0.5)
    assert standard_error(np.array([5.0])) == 0


def test_a_candidate_that_harms_an_earlier_task_comes_after_one_that_does_not():
    harmful = candidate("trained", [1.5, 1.5, 1.5, 1.4], [0.1] * 4)  # lower mean: 0.7875
    harmless = candidate("straight-0.5", [1.0, 1.0, 1.0, 1.0], [0.7] * 4)  # 0.85
    choice = chosen(harmful, harmless)
    assert choice.chosen == "straight-0.5"
    assert {row["name"]: row["harmed"] for row in choice.table} == {
        "trained": ["old"],
        "straight-0.5": [],
    }


def test_a_rise_within_its_noise_is_no_harm():
    noisy = candidate("trained", [1.4, 0.8, 1.3, 0.7], [0.1] * 4)  # +0.05, standard error 0.17
    assert chosen(noisy, candidate("straight-0.5", [1.0] * 4, [0.7] * 4)).chosen == "trained"


def test_a_sibling_is_opened_if_it_alone_harms_nothing():
    harmful = candidate("trained", [1.5, 1.5, 1.5, 1.4], [0.2] * 4)
    sibling = candidate("expand", [1.0] * 4, [0.2] * 4)
    assert chosen(harmful, sibling, price=10).chosen == "expand"


def test_it_is_opened_even_if_retraining_scores_a_little_lower():
    harmful = candidate("straight-0.5", [1.1] * 4, [0.3] * 4)  # 0.7, and raises old by 0.1
    sibling = candidate("expand", [1.0] * 4, [0.44] * 4, parameters="trained")  # 0.72
    choice = chosen(harmful, sibling, price=0.05)
    assert (choice.chosen, choice.parameters) == ("expand", "trained")
    assert chosen(harmful, sibling, price=0.01).chosen == "straight-0.5"


@pytest.mark.parametrize(("price", "expected"), [(0.19, "expand"), (0.21, "trained")])
def test_else_a_sibling_has_to_be_worth_its_price(price, expected):
    retrained = candidate("trained", [1.0] * 4, [0.6] * 4)  # score 0.8
    sibling = candidate("expand", [1.0] * 4, [0.2] * 4)  # 0.6: lower by 0.2, without noise
    choice = chosen(retrained, sibling, price=price)
    assert choice.chosen == expected
    assert "0.200" in choice.why


def test_a_sibling_whose_prompts_routing_cannot_tell_is_not_opened():
    harmful = candidate("trained", [1.5, 1.5, 1.5, 1.4], [0.2] * 4)
    sibling = candidate("expand", [1.0] * 4, [0.2] * 4, told_apart=0.5)
    choice = chosen(harmful, sibling)
    assert choice.chosen == "trained"
    assert "cannot tell" in choice.why


def test_the_worst_task_counts_as_much_as_it_is_told_to():
    even = candidate("straight-0.5", [1.0] * 4, [0.8] * 4)  # mean 0.9, worst 1.0
    uneven = candidate("trained", [0.2] * 4, [1.4] * 4)  # mean 0.8, worst 1.4
    assert chosen(even, uneven).chosen == "trained"
    assert chosen(even, uneven, worst=1.0).chosen == "straight-0.5"


def test_tasks_without_samples_count_with_their_estimate():
    cheap = candidate("straight-0.5", [1.0] * 4, [0.9] * 4, estimate=0.01)
    dear = candidate("trained", [1.0] * 4, [0.5] * 4, estimate=0.4)
    assert chosen(cheap, dear).chosen == "trained"
    choice = chosen(cheap, dear, unmeasured=1)  # above the price: harm
    assert choice.chosen == "straight-0.5"
    assert choice.unmeasured == 1


def test_the_scale_of_the_estimate_is_fitted_through_zero():
    # minimises (2 - s)^2 + (5 - 2 s)^2: s = (2 + 10) / 5
    assert quadratic_scale(np.array([2.0, 5.0]), np.array([1.0, 2.0])) == pytest.approx(2.4)
    assert quadratic_scale(np.array([-1.0]), np.array([1.0])) == 0
    assert quadratic_scale(np.array([1.0]), np.array([0.0])) == 0
