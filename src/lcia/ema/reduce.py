"""Sums over tensors: the L1 norms and inner products that balance rules read.

Every term is a sum over elements, so that the terms of a sharded tensor are the sums of its
shards' terms and one all-reduce of all of them serves a whole step.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Elements in one row of a reduction: small enough for float32 sums that stay exact to 1e-6
# whatever the tensor's size, large enough that the work outweighs the call.
ROW = 4096
# Elements of a temporary: 256 KiB in float32 stays in a core's own cache.
CHUNK = 65536


class Operands(NamedTuple):
    """One tensor's values at a step, flat; what a rule does not need is None."""

    theta: Tensor
    theta_ema: Tensor
    grad: Tensor | None
    grad_prev: Tensor | None
    theta_prev: Tensor | None


def l1_norm(a: Tensor) -> Tensor:
    """Return the sum of |a|, a scalar."""
    return _rows_l1(a, None)


def l1_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of |a - b|, a scalar, without writing the difference to memory."""
    return _rows_l1(a, b)


def _rows_l1(a: Tensor, b: Tensor | None) -> Tensor:
    # cdist is the one operator of plain torch that subtracts, takes absolute values and sums in
    # a single pass through memory; abs(a - b).sum() takes five.
    total = a.new_zeros((), dtype=_sum_dtype(a))
    zero = total.new_zeros(1, ROW) if b is None else None
    for left, right in _pieces(a, b):
        width = min(ROW, left.numel())
        rows = left.view(-1, width)
        if zero is not None:
            total += torch.cdist(rows, zero[:, :width], p=1.0).sum()
        elif right is not None:
            total += torch.cdist(rows.unsqueeze(1), right.view(-1, 1, width), p=1.0).sum()
    return total


def _pieces(a: Tensor, b: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield flat pieces in the sums' dtype, each a whole number of rows or the rest."""
    dtype = _sum_dtype(a)
    whole = a.numel() // ROW * ROW
    plain = a.dtype == dtype and (b is None or b.dtype == dtype)
    stride = max(whole, 1) if plain else CHUNK
    bounds = [*range(0, whole, stride), whole, a.numel()]
    for start, stop in itertools.pairwise(bounds):
        if stop > start:
            yield a[start:stop].to(dtype), None if b is None else b[start:stop].to(dtype)


def _dot(*pairs: tuple[Tensor, Tensor | None]) -> Tensor:
    """Return the inner product of two differences, chunk by chunk."""
    first = pairs[0][0]
    dtype = _sum_dtype(first)
    total = first.new_zeros((), dtype=dtype)
    for start in range(0, first.numel(), CHUNK):
        piece = slice(start, start + CHUNK)
        u, v = (
            a[piece].to(dtype) if b is None else a[piece].to(dtype) - b[piece].to(dtype)
            for a, b in pairs
        )
        total += torch.dot(u, v)
    return total


def _sum_dtype(a: Tensor) -> torch.dtype:
    return torch.promote_types(a.dtype, torch.float32)


def _grad(x: Operands) -> Tensor:
    assert x.grad is not None
    return x.grad


def _against(prev: Tensor | None, term: Callable[[Tensor], Tensor], x: Operands) -> Tensor:
    # A tensor without a previous step is decided by that alone; the sum only has to exist.
    return x.theta_ema.new_zeros(()) if prev is None else term(prev)


def _change_step(x: Operands) -> Tensor:
    if x.grad_prev is None or x.theta_prev is None:
        return x.theta_ema.new_zeros(())
    return _dot((_grad(x), x.grad_prev), (x.theta, x.theta_prev))


def _square(a: Tensor, b: Tensor | None) -> Tensor:
    return _dot((a, b), (a, b))


# With d = theta - theta*, g the gradient, y = g - g_prev, s = theta - theta_prev.
TERMS: dict[str, Callable[[Operands], Tensor]] = {
    "drift_l1": lambda x: l1_distance(x.theta, x.theta_ema),
    "grad_l1": lambda x: l1_norm(_grad(x)),
    "grad_change_l1": lambda x: _against(x.grad_prev, lambda prev: l1_distance(_grad(x), prev), x),
    "step_l1": lambda x: _against(x.theta_prev, lambda prev: l1_distance(x.theta, prev), x),
    "grad_drift": lambda x: _dot((_grad(x), None), (x.theta, x.theta_ema)),
    "drift_sq": lambda x: _square(x.theta, x.theta_ema),
    "change_step": _change_step,
    "step_sq": lambda x: _against(x.theta_prev, lambda prev: _square(x.theta, prev), x),
}
