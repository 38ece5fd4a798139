"""Compiled kernels against the eager reference; on a CPU here, where they compile too."""

import pytest
import torch
from torch import nn

from lcia.ema import DynamicEMA


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", ["paper", "release"])
def test_compiled_kernels_equal_the_reference(rule, dtype):
    torch.manual_seed(0)
    shapes = [(8, 33), (5,), (64, 300), (1, 1)]
    parameters = [(str(i), nn.Parameter(torch.randn(s).to(dtype))) for i, s in enumerate(shapes)]
    eager = DynamicEMA(parameters, rule=rule, fused=False)
    fused = DynamicEMA(parameters, rule=rule, fused=True)
    for step in range(6):
        for _, p in parameters:
            p.grad = torch.randn_like(p)
            p.data = p.data - 0.1 * p.grad
        if step == 4:
            parameters[0][1].grad[0, 0] = torch.nan
            parameters[1][1].data[0] = torch.inf
        eager.update()
        fused.update()
    assert eager.stats().counts == fused.stats().counts
    assert eager.stats().counts["not_finite"] > 0
    for name, values in eager.shadow.items():
        torch.testing.assert_close(fused.shadow[name], values, rtol=1e-5, atol=1e-6)
