"""Rule horizon: a plain mean first, then an exponential one over a share of the task."""

import numpy as np
import pytest
import torch

from lcia.ema import DynamicEMA, build_rule
from lcia.errors import ConfigError


def averages(values, **settings):
    parameter = torch.nn.Parameter(torch.tensor(values[0]))
    ema = DynamicEMA([("w", parameter)], rule={"name": "horizon", **settings})
    out = []
    for value in values[1:]:
        parameter.data = torch.tensor(value)
        ema.update()
        out.append(ema.shadow["w"].numpy().copy())
    return ema, out


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(size=(21, 5))  # the start and 20 steps


def test_a_share_of_1_is_the_mean_of_the_start_and_all_steps(values):
    ema, out = averages(values, share=1.0, max_steps=20)
    for t in range(1, 20):
        np.testing.assert_allclose(out[t - 1], values[: t + 1].mean(axis=0), rtol=1e-12)
    # At the last step t + 1 is one more than the horizon of 20.
    np.testing.assert_allclose(out[19], out[18] + (values[20] - out[18]) / 20, rtol=1e-12)
    assert sum(ema.stats().shares.values()) == 0


@pytest.mark.parametrize(("share", "horizon"), [(0.4, 8.0), (0.13, 2.6), (0.01, 1.0)])
def test_after_the_warm_up_the_horizon_is_the_share_of_the_task(values, share, horizon):
    ema, out = averages(values, share=share, max_steps=20)
    average = values[0]
    for t, value in enumerate(values[1:], start=1):
        beta = min(1 - 1 / (t + 1), 1 - 1 / horizon)
        average = beta * average + (1 - beta) * value
        np.testing.assert_allclose(out[t - 1], average, rtol=1e-9)
    assert ema.last_step().horizon_steps == pytest.approx(horizon)


def test_the_warm_up_goes_on_where_a_saved_average_left_it(values):
    whole, expected = averages(values, share=0.8, max_steps=20)
    half, _ = averages(values[:6], share=0.8, max_steps=20)
    parameter = torch.nn.Parameter(torch.tensor(values[5]))
    resumed = DynamicEMA([("w", parameter)], rule=whole.rule)
    resumed.load_state_dict(half.state_dict())
    for value, average in zip(values[6:], expected[5:], strict=True):
        parameter.data = torch.tensor(value)
        resumed.update()
        np.testing.assert_array_equal(resumed.shadow["w"].numpy(), average)


def test_without_the_number_of_steps_a_loop_is_told_at_once():
    rule = build_rule({"name": "horizon", "share": 0.25})
    with pytest.raises(ConfigError, match=r"rule\.max_steps is not given; .*\"max_steps\": 300"):
        DynamicEMA([("w", torch.nn.Parameter(torch.zeros(2)))], rule=rule)
    assert rule.for_training(40).max_steps == 40
    assert build_rule({"name": "horizon", "max_steps": 9}).for_training(40).max_steps == 9
