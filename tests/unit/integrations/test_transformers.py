"""DynamicEMACallback inside a real Trainer: parity with a hand-written loop, resume, logs."""

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from ema_reference import trajectory
from lcia.ema import REASONS
from lcia.errors import TrainingError
from lcia.integrations import DynamicEMACallback


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(4, 6)
        self.out = nn.Linear(6, 1)

    def forward(self, x, labels):
        return {"loss": (self.out(self.hidden(x).tanh()).squeeze(-1) - labels).pow(2).mean()}


class Points(Dataset):
    def __init__(self, n=64):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(n, 4, generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i], "labels": self.x[i].sum()}


def model():
    torch.manual_seed(1)
    return Regression()


def trainer(folder, callback, *, network=None, **settings):
    args = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=8,
        logging_steps=2,
        report_to="none",
        disable_tqdm=True,
        **{"max_steps": 10, "learning_rate": 0.05, "save_strategy": "no", **settings},
    )
    return Trainer(
        model=network or model(),
        args=args,
        train_dataset=Points(),
        eval_dataset=Points(16),
        callbacks=[callback],
    )


class Recorder(TrainerCallback):
    """Keeps, per optimizer step, the parameters and gradients a reference needs."""

    def __init__(self):
        self.steps = []

    def on_optimizer_step(self, args, state, control, *, model, **kwargs):
        named = model.named_parameters()
        self.steps.append({n: [t.double().clone() for t in (p.detach(), p.grad)] for n, p in named})


def reference_release(start, steps, *, scale=2.0, fallback=0.01):
    """The rule in float64, written from the formula: the averages, and the figures of each step."""
    average, figures = {n: v.double() for n, v in start.items()}, []
    for step, before in zip(steps, [None, *steps[:-1]], strict=True):
        gains, drift_l1, reasons = [], 0.0, []
        for name, (theta, grad) in step.items():
            drift = float((theta - average[name]).abs().sum())
            gain, reason = fallback, "first_step"
            if before is not None:
                change = float((grad - before[name][1]).abs().sum())
                closed = scale * (1 + float(grad.abs().sum())) / (drift * change)
                gain, reason = (closed, None) if 0 < closed < 1 else (fallback, "out_of_range")
            average[name] = average[name] + gain * (theta - average[name])
            gains.append(gain)
            reasons.append(reason)
            drift_l1 += drift
        figures.append({"gains": gains, "reasons": reasons, "drift": drift_l1})
    return average, figures


@pytest.mark.parametrize("accumulation", [1, 2])
def test_average_follows_the_formula_and_becomes_the_parameters(tmp_path, accumulation):
    network, recorder = model(), Recorder()
    start = {n: p.detach().clone() for n, p in network.named_parameters()}
    callback = DynamicEMACallback(rule={"name": "release", "scale": 0.1, "fallback": 0.02})
    run = trainer(
        tmp_path,
        callback,
        network=network,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=0.5,
    )
    run.add_callback(recorder)
    run.train()
    assert len(recorder.steps) == 10
    expected, figures = reference_release(start, recorder.steps, scale=0.1, fallback=0.02)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(
            parameter.detach().double(), expected[name], rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close(callback.ema.shadow[name], parameter.detach(), rtol=0, atol=0)
    assert callback.summary()["steps"] == 10
    for i, log in enumerate(run.state.log_history[:-1]):  # one log for every two steps
        two = figures[2 * i : 2 * i + 2]
        gains = [gain for step in two for gain in step["gains"]]
        reasons = [reason for step in two for reason in step["reasons"]]
        # Gains are float32: near 1 they are known to 6e-8, and so is beta, however small.
        assert log["ema/beta_mean"] == pytest.approx(1 - sum(gains) / 8, rel=1e-5, abs=1e-7)
        assert log["ema/beta_min"] == pytest.approx(1 - max(gains), rel=1e-5, abs=1e-7)
        assert log["ema/beta_max"] == pytest.approx(1 - min(gains), rel=1e-5, abs=1e-7)
        assert log["ema/horizon_steps"] == pytest.approx(8 / sum(gains), rel=1e-4)
        assert log["ema/drift"] == pytest.approx(two[1]["drift"], rel=1e-4)
        for reason in REASONS:
            assert log[f"ema/fallback/{reason}"] == reasons.count(reason) / 8
    assert 0 < sum(step["reasons"].count(None) for step in figures) < 40


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_a_step_that_fp16_loss_scaling_skips_is_left_out(tmp_path, optim):
    class Overflow(Recorder):
        def on_pre_optimizer_step(self, args, state, control, *, model, **kwargs):
            if state.global_step == 4:
                model.hidden.weight.grad[0, 0] = torch.inf

        def on_optimizer_step(self, args, state, control, **kwargs):
            if state.global_step != 4:
                super().on_optimizer_step(args, state, control, **kwargs)

    network, recorder, records = model(), Overflow(), []
    start = {n: p.detach().clone() for n, p in network.named_parameters()}
    callback = DynamicEMACallback(on_step=records.append)
    run = trainer(tmp_path, callback, network=network, max_grad_norm=0.0, optim=optim)
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    run.add_callback(recorder)
    run.train()
    assert [record["step"] for record in records] == [1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert callback.ema.stats().counts["not_finite"] == 0
    expected, _ = reference_release(start, recorder.steps)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(
            parameter.detach().double(), expected[name], rtol=1e-5, atol=1e-6
        )


def test_rule_horizon_gets_the_number_of_steps_from_the_trainer(tmp_path):
    callback = DynamicEMACallback(rule={"name": "horizon", "share": 0.4})
    # 64 samples in batches of 8: 16 steps in two epochs, of which 6.4 are remembered.
    settings = {"max_steps": -1, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 4}
    run = trainer(tmp_path, callback, **settings)
    run.train()
    assert callback.ema.rule.max_steps == 16
    assert run.state.log_history[0]["ema/beta_mean"] == pytest.approx(1 - (1 / 2 + 1 / 3) / 2)
    assert run.state.log_history[-2]["ema/horizon_steps"] == pytest.approx(6.4)
    again = trainer(tmp_path, DynamicEMACallback(rule=callback.rule), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    for a, b in zip(run.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rule", ["release", "paper", "curvature"])
def test_resumed_run_equals_uninterrupted_to_the_bit(tmp_path, rule):
    whole = trainer(tmp_path / "a", DynamicEMACallback(rule=rule), save_strategy="steps",
                    save_steps=4)  # fmt: skip
    whole.train()
    records = []
    callback = DynamicEMACallback(rule=rule, on_step=records.append,
                                  resume_from=tmp_path / "a" / "checkpoint-4")  # fmt: skip
    again = trainer(tmp_path / "b", callback)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    for (name, a), b in zip(whole.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert [record["step"] for record in records] == [5, 6, 7, 8, 9, 10]
    assert callback.summary()["steps"] == 10


def test_checkpoint_holds_the_average_as_plain_safetensors(tmp_path):
    run = trainer(tmp_path, DynamicEMACallback(rule="paper"), save_strategy="steps", save_steps=5)
    run.train()
    tensors = load_file(tmp_path / "checkpoint-5" / "dynamic_ema.safetensors")
    names = {n for n, _ in run.model.named_parameters()}
    groups = ("shadow", "grad_prev", "theta_prev", "step_l1")
    expected = {f"{group}/{n}" for group in groups for n in names}
    assert set(tensors) == expected | {"stats"}


@pytest.mark.parametrize("rule", ["release", "toolkit", "paper", "curvature"])
def test_a_checkpoint_of_an_earlier_lcia_goes_on_or_says_why_not(tmp_path, rule):
    run = trainer(tmp_path / "a", DynamicEMACallback(rule=rule), save_strategy="steps",
                  save_steps=4)  # fmt: skip
    run.train()
    path = tmp_path / "a" / "checkpoint-4" / "dynamic_ema.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = {**file.metadata(), "schema": "1"}
    tensors = load_file(path)
    groups = ("stats", "shadow", "grad_prev", "theta_prev")  # what schema 1 held
    kept = {n: v for n, v in tensors.items() if n.partition("/")[0] in groups}
    save_file(kept, path, metadata=metadata)
    again = trainer(tmp_path / "a", DynamicEMACallback(rule=rule), save_strategy="steps",
                    save_steps=4)  # fmt: skip
    if rule in ("release", "toolkit"):
        again.train(resume_from_checkpoint=str(path.parent))
        for a, b in zip(run.model.parameters(), again.model.parameters(), strict=True):
            assert torch.equal(a, b)
        return
    with pytest.raises(TrainingError, match=r"earlier lcia.*Delete the folders checkpoint-\*"):
        again.train(resume_from_checkpoint=str(path.parent))
    for folder in (tmp_path / "a").glob("checkpoint-*"):
        shutil.rmtree(folder)
    fresh = trainer(tmp_path / "a", DynamicEMACallback(rule=rule), save_strategy="steps",
                    save_steps=4)  # fmt: skip
    fresh.train()
    for a, b in zip(run.model.parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rule", ["paper", "curvature"])
def test_a_rule_that_reads_steps_pairs_them_with_their_gradients(tmp_path, rule):
    # Small tensors in float64, so that the closed form applies and the oracle is exact.
    network, recorder = model().double(), Recorder()
    start = {n: p.detach().clone() for n, p in network.named_parameters()}
    callback = DynamicEMACallback(rule=rule)
    points = [{n: v.double() for n, v in point.items()} for point in Points()]
    run = trainer(tmp_path, callback, network=network, learning_rate=0.2, optim="sgd")
    run.train_dataset = points
    run.add_callback(recorder)
    run.train()
    assert callback.ema.stats().counts["closed_form"] > 0
    for name, parameter in network.named_parameters():
        steps = [tuple(t.numpy() for t in step[name]) for step in recorder.steps]
        expected = trajectory(rule, start[name].numpy(), steps)[-1]
        np.testing.assert_allclose(parameter.detach().numpy().ravel(), expected, rtol=1e-9)


def test_resume_without_the_average_or_under_another_rule_is_an_error(tmp_path):
    run = trainer(tmp_path, DynamicEMACallback(), save_strategy="steps", save_steps=4)
    run.train()
    with pytest.raises(TrainingError, match="another folder"):
        trainer(tmp_path / "b", DynamicEMACallback()).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-4")
        )
    other = DynamicEMACallback(rule="paper", resume_from=tmp_path / "checkpoint-4")
    with pytest.raises(TrainingError, match=r'"Release".*"Paper"'):
        trainer(tmp_path, other).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_logs_and_later_reporters_get_the_figures(tmp_path):
    seen = []

    class Reporter(TrainerCallback):
        def on_log(self, args, state, control, *, logs, **kwargs):
            seen.append(dict(logs))

    run = Trainer(
        model=model(),
        args=trainer(tmp_path, DynamicEMACallback()).args,
        train_dataset=Points(),
        callbacks=[Reporter()],
    )
    DynamicEMACallback().attach(run)
    run.train()
    assert [log["step"] for log in run.state.log_history[:-1]] == [2, 4, 6, 8, 10]
    for log, told in zip(run.state.log_history[:-1], seen, strict=False):
        assert 0 < log["ema/beta_min"] <= log["ema/beta_mean"] <= log["ema/beta_max"] < 1
        assert log["ema/horizon_steps"] == pytest.approx(1 / (1 - log["ema/beta_mean"]))
        assert log["ema/drift"] > 0
        assert told["ema/beta_mean"] == log["ema/beta_mean"]
    assert run.state.log_history[0]["ema/fallback/first_step"] == 0.5


def test_evaluating_before_and_after_training_adds_nothing(tmp_path):
    run = trainer(tmp_path, DynamicEMACallback())
    before = run.evaluate(Points(8))
    run.train()
    after = run.evaluate(Points(8))
    assert not any(key.startswith("ema/") for key in [*before, *after])
    assert "ema/beta_mean" in run.state.log_history[-3]


BEST = {
    "eval_strategy": "steps",
    "eval_steps": 4,
    "save_strategy": "steps",
    "save_steps": 4,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
}


def trained_and_evaluated(folder, *, attach=True, copy_at_end=True, **settings):
    callback = DynamicEMACallback(copy_at_end=copy_at_end)
    run = trainer(folder, callback, **{"max_steps": 12, **settings})
    if attach:
        callback.attach(run)
    run.train()
    return run


@pytest.mark.parametrize("attach", [True, False])
@pytest.mark.parametrize("rate", [0.05, 8.0])  # the last step is best; the first ones are
def test_the_best_model_is_the_average_that_scored_best(tmp_path, rate, attach):
    run = trained_and_evaluated(tmp_path, attach=attach, learning_rate=rate, **BEST)
    scores = {log["step"]: log["eval_loss"] for log in run.state.log_history if "eval_loss" in log}
    assert list(scores) == [4, 8, 12]
    best = min(scores, key=scores.get)
    assert (best == 12) == (rate < 1)
    assert run.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert run.evaluate()["eval_loss"] == scores[best]
    averages = load_file(tmp_path / f"checkpoint-{best}" / "dynamic_ema.safetensors")
    for name, parameter in run.model.named_parameters():
        assert torch.equal(parameter.detach(), averages[f"shadow/{name}"])


@pytest.mark.parametrize(
    "settings",
    [
        {"eval_strategy": "steps", "eval_steps": 3},
        {"eval_strategy": "epoch"},
        {"eval_strategy": "steps", "eval_steps": 5, "eval_on_start": True},
    ],
)
def test_evaluating_the_average_does_not_change_training(tmp_path, settings, caplog):
    plain = trained_and_evaluated(tmp_path / "a")
    often = trained_and_evaluated(tmp_path / "b", **settings)
    assert any("eval_loss" in log for log in often.state.log_history)
    for a, b in zip(plain.model.parameters(), often.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert "saw the parameters" not in caplog.text


def test_an_interrupted_search_for_the_best_model_ends_with_the_same(tmp_path):
    whole = trained_and_evaluated(tmp_path / "a", learning_rate=8.0, **BEST)
    callback = DynamicEMACallback()
    again = trainer(tmp_path / "a", callback, max_steps=12, learning_rate=8.0, **BEST)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-8"))
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_without_copy_at_end_the_parameters_are_evaluated_and_the_best_kept(tmp_path):
    run = trained_and_evaluated(tmp_path, copy_at_end=False, learning_rate=8.0, **BEST)
    best = Path(run.state.best_model_checkpoint)
    assert run.evaluate()["eval_loss"] == run.state.best_metric
    stored = load_file(best / "model.safetensors")
    assert all(torch.equal(p, stored[n]) for n, p in run.model.named_parameters())


def test_an_evaluation_that_misses_the_average_is_told(tmp_path, caplog):
    class Late(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_evaluate = state.global_step == 3

    run = trainer(tmp_path, DynamicEMACallback())
    run.add_callback(Late())
    run.train()
    assert "evaluation at step 3 saw the parameters" in caplog.text


def test_gradients_cleared_too_early_are_an_error(tmp_path):
    class Clear(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, *, model, **kwargs):
            model.zero_grad()

    run = trainer(tmp_path, DynamicEMACallback())
    run.add_callback(Clear())
    with pytest.raises(TrainingError, match="all 4 gradients are None"):
        run.train()


def test_without_copy_at_end_the_parameters_stay(tmp_path):
    network, recorder = model(), Recorder()
    run = trainer(tmp_path, DynamicEMACallback(copy_at_end=False), network=network)
    run.add_callback(recorder)
    run.train()
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter.detach().double(), recorder.steps[-1][name][0])


def test_initial_values_start_the_average(tmp_path):
    network = model()
    initial = {n: torch.zeros_like(p) for n, p in network.named_parameters()}
    recorder = Recorder()
    run = trainer(tmp_path, DynamicEMACallback(initial=copy.deepcopy(initial)), network=network)
    run.add_callback(recorder)
    run.train()
    expected, _ = reference_release(initial, recorder.steps)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(
            parameter.detach().double(), expected[name], rtol=1e-5, atol=1e-6
        )
