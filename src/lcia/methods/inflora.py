"""Interference-free LoRA: a new task changes the weights only where earlier inputs are not.

The subspace that earlier tasks' inputs span in a layer is grown with every task.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from torch import Tensor

from lcia.errors import ConfigError
from lcia.methods.base import TaskContext
from lcia.methods.replay import quota
from lcia.methods.stacking import Stacking, rank_dim

logger = logging.getLogger(__name__)


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


class InfLoRA(Stacking):
    """A new LoRA a task whose A is fixed at right angles to the inputs of earlier tasks.

    With H the inputs of a layer over the task's tokens and M a basis of the subspace of the
    earlier tasks' inputs, the rows of A_t are the r leading left singular vectors of
    (I - M M^T) H, divided by sqrt(3). B_t starts at 0 and alone is trained, so the new task moves
    W only along directions that its own inputs have and earlier ones have not: A_t x = 0 for x in
    M. At the end M grows until it holds ``keep`` of the energy of H (gradient projection memory).
    H is that of ``samples`` training samples, drawn by seed. Where M holds everything there is
    nothing left to learn in.

    M is stored as the smaller one of its basis and its complement's. Computing needs inputs^2
    numbers a layer.

    Source: InfLoRA, arXiv:2404.00228, whose A and B are swapped in name; 1 / sqrt(3), the norm of
    LoRA's usual start, as in its code. Differs: ``keep`` stays as it is, where the code raises it
    with every task up to 1, which takes knowing how many will come.
    """

    settings: ClassVar[dict[str, Any]] = {"keep": 0.98, "samples": 100}

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if self.config["keep"] > 1:
            raise ConfigError(
                f"method.keep is {self.config['keep']!r}; expected a share of the inputs' energy, "
                "from 0 to 1."
            )

    @torch.no_grad()
    def attach(self, trainer: Any, context: TaskContext) -> None:
        """Set A to what is outside the earlier tasks' subspace, and train B alone."""
        self._model = trainer.model
        if context.reused and not context.carried:
            logger.warning(
                "group %s: no subspace of its earlier tasks is stored, so the new LoRA may act on "
                "their inputs.",
                context.group,
            )
        for layer, second in self._moments(context).items():
            new = self._halves(*self._down(context, layer))[1]
            basis = restored(context.carried, second, layer=layer)
            directions = outside(second, basis, count=len(new)).T / math.sqrt(3)
            new.zero_()
            new[: len(directions)] = directions
        super().attach(trainer, context)

    def frozen(self, name: str, factor: Tensor) -> Tensor:
        """Return all of A, and the earlier LoRAs' part of B."""
        return factor if rank_dim(name) == 0 else super().frozen(name, factor)

    def finish(self, context: TaskContext) -> Mapping[str, Any]:
        """Carry on the subspace, grown by this task's inputs."""
        keep = self.config["keep"]
        return stored(
            {
                layer: grown(second, restored(context.carried, second, layer=layer), keep=keep)
                for layer, second in self._moments(context).items()
            }
        )

    def _moments(self, context: TaskContext) -> dict[str, Tensor]:
        layers = [n.removesuffix(".weight") for n in context.parameters if rank_dim(n) == 0]
        batches = [context.encode([sample]) for sample in quota(context, self.config["samples"])]
        return second_moments(self._model, layers, batches)

    @staticmethod
    def _down(context: TaskContext, layer: str) -> tuple[str, Tensor]:
        name = f"{layer}.weight"
        return name, context.parameters[name]
