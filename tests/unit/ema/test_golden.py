"""Step-by-step parity with the two public implementations (tests/golden/ema_*.npz)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lcia.ema import DynamicEMA

GOLDEN = Path(__file__).parents[2] / "golden"


def replay(path: Path, rule: str):
    """Replay a file's steps; return the averager and (average, golden average) pairs."""
    data = np.load(path)
    names = sorted({key.split("/")[1] for key in data})
    steps = 1 + max(int(key.split("/")[2]) for key in data)
    parameters = {n: torch.nn.Parameter(torch.tensor(data[f"theta/{n}/0"])) for n in names}
    ema = DynamicEMA(parameters.items(), rule=rule)
    pairs = []
    for step in range(steps):
        for name, parameter in parameters.items():
            parameter.data.copy_(torch.tensor(data[f"theta/{name}/{step}"]))
            parameter.grad = torch.tensor(data[f"grad/{name}/{step}"])
        ema.update()
        for name in names:
            pairs.append((ema.shadow[name].numpy().copy(), data[f"shadow/{name}/{step}"]))
    return ema, pairs


@pytest.mark.parametrize(
    ("file", "closed_form", "fallbacks"),
    [
        ("release_large", 79, {"first_step": 4, "out_of_range": 77}),
        ("release_small", 0, {"first_step": 4, "out_of_range": 156}),
        ("release_special", 22, {"first_step": 4, "no_curvature": 8, "out_of_range": 22}),
        ("toolkit_large", 147, {"first_step": 4, "out_of_range": 9}),
        ("toolkit_small", 78, {"first_step": 4, "out_of_range": 78}),
    ],
)
def test_every_step_equals_the_public_implementation(file, closed_form, fallbacks):
    ema, pairs = replay(GOLDEN / f"ema_{file}.npz", file.split("_")[0])
    for average, golden in pairs:
        scale = np.abs(golden).max()
        np.testing.assert_allclose(average, golden, rtol=0, atol=1e-4 * scale)
    counts = ema.stats().counts
    assert counts.pop("closed_form") == closed_form
    assert {reason: n for reason, n in counts.items() if n} == fallbacks
