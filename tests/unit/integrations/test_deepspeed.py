"""DeepSpeedEMA where the optimizer steps and clears gradients out of sight (as at ZeRO-0)."""

import pytest
import torch
from torch import nn

from lcia.ema import DynamicEMA
from lcia.errors import TrainingError
from lcia.integrations import DeepSpeedEMA


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
