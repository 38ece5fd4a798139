"""The subspace that earlier tasks' inputs span in a layer, and what lies outside it."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

NOISE = 1e-10
"""Share of a layer's energy below which a direction is rounding."""

COMPLEMENT = "complement:"
"""Before the name of a layer whose stored basis spans what is outside its subspace."""


def second_moments(
    model: Any, layers: Sequence[str], batches: Sequence[Mapping[str, Any]]
) -> dict[str, Tensor]:
    """Return H H^T of the inputs of linear layers over all tokens of the batches, by layer.

    Args:
        model: is run forward; dropout is off meanwhile.
        layers: names of modules.
        batches: of one sample each, so that none of their tokens is padding.

    Returns:
        Shape (inputs, inputs) each, float64.
    """
    sums: dict[str, Tensor] = {}

    def add(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].detach().flatten(0, -2).double()
            sums[name] = sums.get(name, 0) + rows.T @ rows

        return hook

    training = model.training
    model.eval()
    with ExitStack() as stack, torch.no_grad():
        for name in layers:
            handle = model.get_submodule(name).register_forward_pre_hook(add(name))
            stack.callback(handle.remove)
        for batch in batches:
            model(**batch)
    model.train(training)
    return sums


def outside(second: Tensor, basis: Tensor, *, count: int) -> Tensor:
    """Return the directions of most energy outside a subspace.

    The leading left singular vectors of (I - M M^T) H.

    Args:
        second: H H^T, shape (inputs, inputs), float64.
        basis: M, orthonormal columns, shape (inputs, any).
        count: how many at most; fewer where fewer carry energy.

    Returns:
        Orthonormal columns at right angles to M, shape (inputs, at most count).
    """
    _, vectors = _residual(second, basis)
    return vectors[:, :count]


def grown(second: Tensor, basis: Tensor, *, keep: float) -> Tensor:
    """Return a subspace with the fewest directions added that make it hold a share of the energy.

    |M M^T H|^2 + |(H^)_u|^2 >= keep |H|^2 with H^ = (I - M M^T) H and (H^)_u its best
    approximation of rank u, in Frobenius norms: gradient projection memory, arXiv:2103.09762.

    Args:
        second: H H^T, shape (inputs, inputs), float64.
        basis: M, orthonormal columns, shape (inputs, any).
        keep: the share, from 0 to 1.
    """
    values, vectors = _residual(second, basis)
    total = second.trace()
    missing = keep * total - (total - values.sum())
    held = values.cumsum(0)
    count = 0 if missing <= 0 else int((held < missing * (1 - NOISE)).sum()) + 1
    return torch.cat([basis, vectors[:, :count]], dim=1)


def _residual(second: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues and vectors of the energy outside a subspace, largest first."""
    rest = second - basis @ (basis.T @ second)
    rest = rest - (rest @ basis) @ basis.T
    values, vectors = torch.linalg.eigh((rest + rest.T) / 2)
    values, vectors = values.flip(0), vectors.flip(1)
    real = values > NOISE * second.trace()
    return values[real], vectors[:, real]


def stored(bases: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the smaller one of each subspace's basis and its complement's, to keep."""
    found = {}
    for name, basis in bases.items():
        inputs, size = basis.shape
        if 2 * size <= inputs:
            found[name] = basis.float()
        elif size < inputs:
            found[COMPLEMENT + name] = _complement(basis).float()
        else:
            found[COMPLEMENT + name] = basis.new_zeros(inputs, 1).float()
    return found


def restored(kept: Mapping[str, Tensor], like: Tensor, *, layer: str) -> Tensor:
    """Return the basis of a layer's subspace from what ``stored`` keeps; without columns if none.

    Args:
        kept: what ``stored`` returned.
        like: H H^T of the layer, for shape, dtype and device.
        layer: its name.
    """
    if COMPLEMENT + layer in kept:
        return _complement(_orthonormal(kept[COMPLEMENT + layer].to(like)))
    if layer in kept:
        return _orthonormal(kept[layer].to(like))
    return like.new_zeros(len(like), 0)


def _complement(basis: Tensor) -> Tensor:
    full, _ = torch.linalg.qr(basis, mode="complete")
    return full[:, basis.shape[1] :]


def _orthonormal(basis: Tensor) -> Tensor:
    """Return the columns that are not zero, at right angles to each other to the last digit."""
    q, _ = torch.linalg.qr(basis[:, basis.any(0)])
    return q
