"""One compiled kernel for a tensor's L1 norms and one for its blend, for devices.

Eager operators read a tensor once per term and write differences to memory; on a GPU there is no
cache to keep those in. ``lcia.ema.reduce`` is the reference.
"""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lcia.ema.reduce import Operands
from lcia.ema.reduce import blend as eager_blend

_FUSED_TERMS = frozenset({"drift_l1", "grad_l1", "grad_change_l1", "step_l1"})


def is_available(terms: Sequence[str], device: torch.device) -> bool:
    """Whether the compiled kernels serve these terms on this device without being asked for."""
    has_compiler = device.type == "cuda" and importlib.util.find_spec("triton") is not None
    return has_compiler and can_compute(terms)


def can_compute(terms: Sequence[str]) -> bool:
    """Whether all terms are L1 norms, the ones there are compiled kernels for."""
    return _FUSED_TERMS.issuperset(terms)


def sums(x: Operands, terms: Sequence[str]) -> Tensor:
    """Return the terms of one tensor, shape (terms,); 0 where there is no previous step."""
    operands = [x.theta, x.theta_ema, x.grad, x.grad_prev, x.theta_prev]
    values = _compiled(_l1_sums)(*operands)
    zero = x.theta_ema.new_zeros(())
    return torch.stack([values.get(term, zero) for term in terms])


def blend(theta_ema: Tensor, theta: Tensor, gain: Tensor) -> None:
    """Move an average by a gain that stays on the device; gain 0 keeps it whatever theta is."""
    _compiled(eager_blend)(theta_ema, theta, gain)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


def _l1_sums(
    theta: Tensor,
    theta_ema: Tensor,
    grad: Tensor | None,
    grad_prev: Tensor | None,
    theta_prev: Tensor | None,
) -> dict[str, Tensor]:
    kind = theta_ema.dtype
    theta = theta.to(kind)
    out = {"drift_l1": (theta - theta_ema).abs().sum()}
    if grad is not None:
        out["grad_l1"] = grad.to(kind).abs().sum()
    if grad is not None and grad_prev is not None:
        out["grad_change_l1"] = (grad.to(kind) - grad_prev.to(kind)).abs().sum()
    if theta_prev is not None:
        out["step_l1"] = (theta - theta_prev.to(kind)).abs().sum()
    return out
