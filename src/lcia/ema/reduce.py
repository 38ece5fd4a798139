"""Sums over tensors: the L1 norms and inner products that balance rules read.

Every term is a sum over elements, so that the terms of a sharded tensor are the sums of its
shards' terms and one all-reduce of all of them serves a whole step. Differences are written to a
scratch buffer that stays in the last cache, not to memory: a plain ``(a - b).abs().sum()`` moves
five times the bytes and pays page faults for its temporaries.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Elements of the scratch buffer: 8 MiB in float32, so that most tensors are one piece. With 1 MiB
# an update of 448 tensors of 0.5 to 1.4 M took 8 to 15 % longer (``benchmarks.speed.ema``, (b)).
CHUNK = 1 << 21
# On a device launches cost more than memory traffic: one chunk for all but the largest tensors.
DEVICE_CHUNK = 1 << 24


class Operands(NamedTuple):
    """One tensor's values at a step, flat; what there is not is None.

    Attributes:
        theta: parameters after the optimizer step.
        theta_ema: average before its update.
        grad: gradient that the step used.
        grad_prev: gradient of the step before.
        theta_prev: parameters before the step.
        theta_before: parameters before the step before, where the gradient before was taken.
    """

    theta: Tensor
    theta_ema: Tensor
    grad: Tensor | None
    grad_prev: Tensor | None
    theta_prev: Tensor | None
    theta_before: Tensor | None


def new_scratch(like: Tensor, *, largest: int) -> Tensor:
    """Return memory to write differences over, in dtype and on the device of an average.

    Args:
        like: an average.
        largest: elements of the largest tensor that it will serve.
    """
    chunk = CHUNK if like.device.type == "cpu" else DEVICE_CHUNK
    return like.new_empty(max(1, min(chunk, largest)))


def l1_norm(a: Tensor, scratch: Tensor) -> Tensor:
    """Return the sum of |a|, a scalar in the scratch's dtype."""
    return _add_up(_absolute(piece, out).sum() for (piece,), out in _pieces(scratch, a))


def l1_distance(a: Tensor, b: Tensor, scratch: Tensor) -> Tensor:
    """Return the sum of |a - b|, a scalar in the scratch's dtype."""
    pieces = _pieces(scratch, a, b)
    return _add_up(_subtract(left, right, out).abs_().sum() for (left, right), out in pieces)


def dot_difference(a: Tensor, b: Tensor, c: Tensor, scratch: Tensor) -> Tensor:
    """Return <a - b, c>, a scalar in the scratch's dtype."""
    return _add_up(
        torch.dot(_subtract(left, right, out), other.to(out.dtype))
        for (left, right, other), out in _pieces(scratch, a, b, c)
    )


def dot_differences(a: Tensor, b: Tensor, c: Tensor, d: Tensor, scratch: Tensor) -> Tensor:
    """Return <a - b, c - d>, a scalar in the scratch's dtype."""
    return _add_up(
        torch.dot(_subtract(left, right, out), third.to(out.dtype) - fourth)
        for (left, right, third, fourth), out in _pieces(scratch, a, b, c, d)
    )


def move(theta_ema: Tensor, theta: Tensor, gain: float, scratch: Tensor) -> None:
    """Move an average towards the parameters by a gain known to the host."""
    if theta.dtype == theta_ema.dtype:
        theta_ema.lerp_(theta, gain)
        return
    for (average, values), out in _pieces(scratch, theta_ema, theta):
        average.lerp_(out.copy_(values), gain)


def blend(theta_ema: Tensor, theta: Tensor, gain: Tensor) -> None:
    """Move an average by a gain that stays on the device; gain 0 keeps it whatever theta is."""
    theta = torch.where(gain > 0, theta.to(theta_ema.dtype), theta_ema)
    theta_ema.lerp_(theta, gain)


def _pieces(scratch: Tensor, *tensors: Tensor) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    size, chunk = tensors[0].numel(), scratch.numel()
    if size <= chunk:  # most tensors of an adapter: cutting them costs more than adding them up
        yield tensors, scratch[:size]
        return
    for start in range(0, size, chunk):
        pieces = tuple(tensor[start : start + chunk] for tensor in tensors)
        yield pieces, scratch[: pieces[0].numel()]


def _add_up(sums: Iterable[Tensor]) -> Tensor:
    return functools.reduce(Tensor.add_, sums)


def _absolute(a: Tensor, out: Tensor) -> Tensor:
    return torch.abs(a, out=out) if a.dtype == out.dtype else out.copy_(a).abs_()


def _subtract(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    # torch.sub of two bf16 tensors would round to bf16 before it writes to a float32 out.
    return torch.sub(a, b, out=out) if a.dtype == out.dtype else out.copy_(a).sub_(b)


def _need(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


Term = Callable[[Operands, Tensor], Tensor]


def _with_previous(term: Term) -> Term:
    """Return 0 for a tensor without a previous step: it falls back whatever its sums are."""

    def value(x: Operands, scratch: Tensor) -> Tensor:
        return scratch.new_zeros(()) if x.grad_prev is None else term(x, scratch)

    return value


def _with_step(term: Term) -> Term:
    """Return 0 likewise where the step between the two gradients is not known."""

    def value(x: Operands, scratch: Tensor) -> Tensor:
        return scratch.new_zeros(()) if x.theta_before is None else term(x, scratch)

    return _with_previous(value)


# With d = theta - theta*, g the gradient, y = g - g_prev, s = theta_prev - theta_before. Of
# step_l1, the value of this step is the s of the next update.
TERMS: dict[str, Term] = {
    "drift_l1": lambda x, out: l1_distance(x.theta, x.theta_ema, out),
    "grad_l1": lambda x, out: l1_norm(_need(x.grad), out),
    "grad_change_l1": _with_previous(
        lambda x, out: l1_distance(_need(x.grad), _need(x.grad_prev), out)
    ),
    "step_l1": lambda x, out: l1_distance(x.theta, _need(x.theta_prev), out),
    "grad_drift": lambda x, out: dot_difference(x.theta, x.theta_ema, _need(x.grad), out),
    "drift_sq": lambda x, out: dot_differences(x.theta, x.theta_ema, x.theta, x.theta_ema, out),
    "change_step": _with_step(
        lambda x, out: dot_differences(
            _need(x.grad), _need(x.grad_prev), _need(x.theta_prev), _need(x.theta_before), out
        )
    ),
    "step_sq": _with_step(
        lambda x, out: dot_differences(
            *(2 * (_need(x.theta_prev), _need(x.theta_before))), scratch=out
        )
    ),
}
