"""PrecisionMergeCallback inside a real Trainer, against the formula."""

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from lcia.ema import DynamicEMA
from lcia.errors import TrainingError
from lcia.integrations import DeepSpeedEMA, PrecisionMergeCallback

ROWS = [
    {"x": x, "labels": x.sum()}
    for x in torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
]


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 1)

    def forward(self, x, labels):
        return {"loss": (self.out(x).squeeze(-1) - labels).pow(2).mean()}


class Recorder(TrainerCallback):
    """Keeps squared gradients of the steps taken, and the parameters at the end."""

    def __init__(self, overflow_at=None):
        self.squares, self.overflow_at = {}, overflow_at

    def on_pre_optimizer_step(self, args, state, control, *, model, **kwargs):
        if state.global_step == self.overflow_at:
            model.out.weight.grad[0, 0] = torch.inf

    def on_optimizer_step(self, args, state, control, *, model, **kwargs):
        self.trained = {n: p.detach().double() for n, p in model.named_parameters()}
        if state.global_step != self.overflow_at:
            for name, p in model.named_parameters():
                self.squares[name] = self.squares.get(name, 0) + p.grad.double() ** 2


@pytest.mark.parametrize("optim", [None, "adamw_torch", "adamw_torch_fused"])
def test_the_model_ends_as_the_merge_without_skipped_steps(tmp_path, optim):
    torch.manual_seed(0)
    model = Regression()
    old = {n: p.detach().clone() for n, p in model.named_parameters()}
    precision_old = {n: torch.rand_like(p) / 5 for n, p in model.named_parameters()}
    callback = PrecisionMergeCallback(theta_old=old, old_weight=0.5, precision_old=precision_old)
    recorder = Recorder(overflow_at=None if optim is None else 2)
    args = TrainingArguments(
        str(tmp_path),
        use_cpu=True,
        max_steps=6,
        learning_rate=0.1,
        max_grad_norm=0.0,
        optim=optim or "adamw_torch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=args, train_dataset=ROWS, callbacks=[recorder, callback])
    if optim is not None:
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    trainer.train()

    total = sum(float(s.sum()) for s in recorder.squares.values())
    for name, parameter in model.named_parameters():
        new, before = recorder.squares[name] / total, precision_old[name].double()
        weight = new / (new + 0.5 * before)
        expected = old[name] + weight * (recorder.trained[name] - old[name])
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(callback.precision()[name].double(), new + before)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))


def hidden_step(model, optimizer, batch):
    """What engine.backward and engine.step leave behind: stepped parameters, no gradients."""
    model(batch).pow(2).mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_gradients_are_caught_at_the_optimizer():
    hidden, seen = network(), network()
    optimizer = torch.optim.SGD(hidden.parameters(), lr=0.1)
    ema = DeepSpeedEMA(hidden, optimizer, rule="paper")
    reference = DynamicEMA(seen.named_parameters(), rule="paper")
    steps = torch.optim.SGD(seen.parameters(), lr=0.1)
    reference.attach(steps)
    for _ in range(5):
        batch = torch.randn(8, 4)
        hidden_step(hidden, optimizer, batch)
        hidden_step(seen, steps, batch)
        ema.update()
    for name, values in reference.shadow.items():
        assert torch.equal(ema.shadow[name], values)
    ema.copy_to_parameters()
    for name, parameter in hidden.named_parameters():
        assert torch.equal(parameter, reference.shadow[name])


def test_an_update_without_a_step_is_an_error():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ema = DeepSpeedEMA(model, optimizer)
    hidden_step(model, optimizer, torch.randn(8, 4))
    ema.update()
    with pytest.raises(TrainingError, match="took no optimizer step"):
        ema.update()


def test_optimizers_that_cannot_be_read_are_named():
    class Opaque:
        pass

    with pytest.raises(TrainingError, match="Opaque drives no torch optimizer"):
        DeepSpeedEMA(network(), Opaque())
    low = network().bfloat16()
    with pytest.raises(TrainingError, match=r"0\.weight is torch\.bfloat16 .* use ZeRO-1"):
        DeepSpeedEMA(low, torch.optim.SGD(low.parameters(), lr=0.1))
