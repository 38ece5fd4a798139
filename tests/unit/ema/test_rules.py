"""Balance rules against formulas, golden steps of the public code, and docs/ema.md."""

import importlib.util
import runpy
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from ema_reference import trajectory
from lcia.ema import DynamicEMA, Fixed, build_rule
from lcia.ema.reduce import CHUNK, new_scratch
from lcia.errors import ConfigError
from lcia.registry import RULES

ADAPTIVE = ["paper", "release", "toolkit", "curvature"]


def quadratic_steps(shape, *, steps, seed, scale):
    """Gradient descent on a noisy quadratic: gradients, curvature and drift all change."""
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=shape) * scale
    start, rates = theta.copy(), rng.uniform(0.1, 1.5, size=shape)
    out = []
    for _ in range(steps):
        grad = rates * theta + 0.05 * scale * rng.normal(size=shape)
        theta = theta - 0.3 * grad
        out.append((theta.copy(), grad))
    return start, out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3,), (8, 16), (97, 101), (5, 33, 70)])
@pytest.mark.parametrize("rule", ADAPTIVE)
def test_averages_follow_the_formula(rule, shape, dtype):
    # The scale puts L1 norms where every rule's closed form applies on some of the steps.
    start, steps = quadratic_steps(shape, steps=15, seed=3, scale=40.0 / np.prod(shape))
    parameter = torch.nn.Parameter(torch.tensor(start, dtype=dtype))
    ema = DynamicEMA([("w", parameter)], rule=rule)
    as_seen = [tuple(torch.tensor(a, dtype=dtype).double().numpy() for a in s) for s in steps]
    expected = trajectory(rule, torch.tensor(start, dtype=dtype).double().numpy(), as_seen)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    for (theta, grad), average in zip(steps, expected, strict=True):
        parameter.data = torch.tensor(theta, dtype=dtype)
        parameter.grad = torch.tensor(grad, dtype=dtype)
        ema.update()
        difference = np.abs(ema.shadow["w"].double().numpy().ravel() - average).max()
        assert difference <= tolerance * np.abs(average).max()
    assert ema.shadow["w"].dtype == dtype


@pytest.mark.parametrize("rule", ADAPTIVE)
def test_a_tensor_summed_in_pieces_moves_as_one_that_is_summed_whole(rule, monkeypatch):
    start, steps = quadratic_steps((97, 101), steps=15, seed=3, scale=40.0 / (97 * 101))
    averages = []
    for chunk in (CHUNK, 1000):  # 9,797 elements: one piece, and ten of which the last is shorter
        monkeypatch.setattr("lcia.ema.reduce.CHUNK", chunk)
        assert new_scratch(torch.zeros(1), largest=9797).numel() == min(chunk, 9797)
        parameter = torch.nn.Parameter(torch.tensor(start))
        ema = DynamicEMA([("w", parameter)], rule=rule)
        for theta, grad in steps:
            parameter.data, parameter.grad = torch.tensor(theta), torch.tensor(grad)
            ema.update()
        averages.append(ema.shadow["w"].clone())
    torch.testing.assert_close(*averages, rtol=1e-10, atol=0)


@pytest.mark.parametrize("rule", ADAPTIVE)
def test_the_closed_form_is_reached_in_the_test_above(rule):
    used = 0
    for shape in [(3,), (8, 16), (97, 101)]:
        start, steps = quadratic_steps(shape, steps=15, seed=3, scale=40.0 / np.prod(shape))
        parameter = torch.nn.Parameter(torch.tensor(start))
        ema = DynamicEMA([("w", parameter)], rule=rule)
        for theta, grad in steps:
            parameter.data, parameter.grad = torch.tensor(theta), torch.tensor(grad)
            ema.update()
        used += ema.stats().counts["closed_form"]
    assert used > 0


def test_fixed_equals_plain_exponential_averaging_and_needs_no_gradient():
    parameter = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    ema = DynamicEMA([("w", parameter)], rule=Fixed(beta=0.9))
    for _ in range(7):
        parameter.data += 1.0
        ema.update()
    expected = sum(0.1 * 0.9 ** (7 - k) * k for k in range(1, 8))
    torch.testing.assert_close(ema.shadow["w"], torch.full((4,), expected, dtype=torch.float64))
    assert ema.stats().beta_mean == pytest.approx(0.9)
    assert sum(ema.stats().shares.values()) == 0


@pytest.mark.parametrize("name", RULES.builtin)
def test_every_registered_rule_builds_from_its_name_and_repeats_its_settings(name):
    rule = build_rule(name)
    assert build_rule(rule) is rule
    settings = {s.name: getattr(rule, s.name) for s in fields(rule) if s.init}
    assert build_rule({"name": name, **settings}) == rule
    assert RULES.describe(name)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "relaese"}, "Nearest: release"),
        ({"name": "release", "fallbak": 0.1}, r"rule\.fallbak .* Nearest: fallback"),
        ({"name": "release", "fallback": 1.5}, r"rule\.fallback is 1\.5; .* \(0, 1\)"),
        ({"name": "release", "scale": 0}, r"rule\.scale is 0; .* \(0, inf\)"),
        ({"name": "fixed", "beta": "high"}, r"rule\.beta is 'high'"),
        ({"name": "fixed", "fallback": 0.5}, r"rule\.fallback is not a setting of 'fixed'"),
        ({"scale": 2.0}, "no 'name'"),
        ({"name": "horizon", "share": 1.5}, r"rule\.share is 1\.5; .* \(0, 1\]"),
        ({"name": "horizon", "share": 0}, r"rule\.share is 0"),
        ({"name": "horizon", "max_steps": 0}, r"rule\.max_steps is 0"),
    ],
)
def test_wrong_settings_are_named(config, message):
    with pytest.raises(ConfigError, match=message):
        build_rule(config)


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


GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "ema.npz")


def replay(run: str, rule: str):
    """Replay a run of plain SGD; return the averager and (average, golden average) pairs.

    Every step's gradient is recorded, and the averages after some of them.
    """
    data = {key.removeprefix(f"{run}/"): GOLDEN[key] for key in GOLDEN if key.startswith(run)}
    theta = {key.removeprefix("theta/"): v for key, v in data.items() if key.startswith("theta/")}
    parameters = {n: torch.nn.Parameter(torch.tensor(v)) for n, v in theta.items()}
    ema = DynamicEMA(parameters.items(), rule=rule)
    pairs = []
    for step in range(len(data["grad/t0"])):
        for name, parameter in parameters.items():
            grad = data[f"grad/{name}"][step]
            if step:  # as torch computes it: one rounding
                change = float(data["learning_rate"]) * grad.astype(float)
                theta[name] = (theta[name].astype(float) - change).astype(np.float32)
            parameter.data.copy_(torch.tensor(theta[name]))
            parameter.grad = torch.tensor(grad)
        ema.update()
        for place in np.flatnonzero(data["compared"] == step):
            for name in theta:
                pairs.append((ema.shadow[name].numpy().copy(), data[f"shadow/{name}"][place]))
    assert len(pairs) == len(theta) * len(data["compared"])
    return ema, pairs


@pytest.mark.parametrize(
    ("run", "closed_form", "fallbacks"),
    [
        ("release_large", 79, {"first_step": 4, "out_of_range": 77}),
        ("release_small", 0, {"first_step": 4, "out_of_range": 76}),
        ("release_special", 22, {"first_step": 4, "no_curvature": 8, "out_of_range": 22}),
        ("next_large", 147, {"first_step": 4, "out_of_range": 9}),
        ("next_small", 38, {"first_step": 4, "out_of_range": 38}),
    ],
)
def test_every_step_equals_the_public_implementation(run, closed_form, fallbacks):
    # What is called toolkit here was called next when the runs were recorded.
    ema, pairs = replay(run, run.split("_")[0].replace("next", "toolkit"))
    for average, golden in pairs:
        scale = np.abs(golden).max()
        np.testing.assert_allclose(average, golden, rtol=0, atol=1e-4 * scale)
    counts = ema.stats().counts
    assert counts.pop("closed_form") == closed_form
    assert {reason: n for reason, n in counts.items() if n} == fallbacks
