"""Quadratic penalties on leaving where training started: plain L2, and online EWC."""

import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lcia.methods.base import Method, TaskContext

logger = logging.getLogger(__name__)


class QuadraticPenalty:
    """strength / 2 * sum over i of F_i (theta_i - theta_old_i)^2, theta_old as it is now.

    Args:
        parameters: by name; their values now are theta_old.
        strength: lambda.
        precision: F by name, of the parameters' shapes; None for 1.
    """

    def __init__(
        self,
        parameters: Mapping[str, Any],
        *,
        strength: float,
        precision: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._parameters = list(parameters.values())
        self._strength = strength
        self._old = self._flat().detach()
        self._precision = None
        if precision is not None:
            ordered = [precision[name].reshape(-1) for name in parameters]
            self._precision = torch.cat(ordered).to(self._old)

    def __call__(self) -> Tensor:
        """Return the penalty, a scalar with a gradient."""
        # One vector: hundreds of small tensors would cost more in calls than in arithmetic.
        squares = (self._flat() - self._old).square()
        if self._precision is not None:
            squares = squares * self._precision
        return self._strength / 2 * squares.sum()

    def _flat(self) -> Tensor:
        return torch.cat([p.reshape(-1) for p in self._parameters])


class L2(Method):
    """Adds lambda / 2 * |theta - theta_old|^2, theta_old being the adapter before the task."""

    sharded: ClassVar[bool] = False
    settings: ClassVar[dict[str, Any]] = {"strength": 0.1}

    def attach(self, trainer: Any, context: TaskContext) -> None:
        """Remember where training starts, if there is something to protect."""
        self._penalty = None
        if context.reused:
            strength = self.config["strength"]
            self._penalty = QuadraticPenalty(context.parameters, strength=strength)

    def extra_loss(self, model: Any, inputs: Mapping[str, Any], outputs: Any) -> Any | None:
        """Return the penalty."""
        return self._penalty() if self._penalty is not None else None


class EWC(Method):
    """Adds lambda / 2 * sum_i F_i (theta_i - theta_old_i)^2: what earlier tasks need, stays.

    At the end of a task F becomes ``decay`` * F + F_new, F_new being the mean over at most
    ``samples`` training samples, drawn by seed, of the squared gradient of each one's own
    log-likelihood. theta_old is the adapter before the task.

    Source: arXiv:1612.00796; one F that decays instead of one per task: arXiv:1805.06370, where
    ``decay`` is gamma. The labels are the data's, so F is the empirical Fisher information.
    """

    sharded: ClassVar[bool] = False
    settings: ClassVar[dict[str, Any]] = {"strength": 100.0, "decay": 0.95, "samples": 100}

    def attach(self, trainer: Any, context: TaskContext) -> None:
        """Penalise leaving where training starts, if F is known."""
        self._model = trainer.model
        self._penalty = None
        if context.reused and not context.carried:
            logger.warning(
                "group %s: no F of its earlier tasks is stored, so nothing of them is protected.",
                context.group,
            )
        if context.carried:
            self._penalty = QuadraticPenalty(
                context.parameters, strength=self.config["strength"], precision=context.carried
            )

    def extra_loss(self, model: Any, inputs: Mapping[str, Any], outputs: Any) -> Any | None:
        """Return the penalty."""
        return self._penalty() if self._penalty is not None else None

    def finish(self, context: TaskContext) -> Mapping[str, Any]:
        """Carry on F."""
        train = context.task.train
        count = min(self.config["samples"], len(train))
        drawn = random.Random(context.seed).sample(train, count)
        batches = [context.encode([sample]) for sample in drawn]
        fisher = empirical_fisher(self._model, context.parameters, batches)
        for name, old in context.carried.items():
            fisher[name] += self.config["decay"] * old.to(fisher[name])
        return fisher


def empirical_fisher(
    model: Any, parameters: Mapping[str, Tensor], batches: Sequence[Mapping[str, Any]]
) -> dict[str, Tensor]:
    """Return the mean over samples of (d log p(answer | prompt) / d theta)^2, by name.

    Args:
        model: the model; dropout is off meanwhile.
        parameters: of the model, by name.
        batches: of one sample each: squares of a batch's mean gradient would be something else.
    """
    tensors = list(parameters.values())
    sums = [torch.zeros_like(tensor) for tensor in tensors]
    training = model.training
    model.eval()
    for batch in batches:
        tokens = (batch["labels"] >= 0).sum()
        nll = model(**batch).loss * tokens
        # Not backward(): DDP's hooks would take these gradients for those of a step.
        grads = torch.autograd.grad(nll, tensors, materialize_grads=True)
        for total, grad in zip(sums, grads, strict=True):
            total.addcmul_(grad, grad)
    model.train(training)
    return {name: total / len(batches) for name, total in zip(parameters, sums, strict=True)}
