"""Interference-free LoRA: a new task changes the weights only where earlier inputs are not."""

import logging
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lcia.errors import ConfigError
from lcia.methods.base import TaskContext
from lcia.methods.replay import quota
from lcia.methods.stacking import Stacking, rank_dim
from lcia.methods.subspace import grown, outside, restored, second_moments, stored

logger = logging.getLogger(__name__)


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
