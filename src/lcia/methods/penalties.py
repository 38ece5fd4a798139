"""Penalties on leaving what was learned: L2 and online EWC on parameters, LwF on outputs."""

import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from lcia.errors import ConfigError
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


class LwF(Method):
    """Adds lambda * T^2 * KL(teacher || student) on answer tokens, both softened by T.

    The teacher is the model with the adapter before the task, without dropout; it reads the new
    task's samples.

    Source: arXiv:1606.09282 (T = 2, lambda = 1); T^2 keeps the gradient's size: arXiv:1503.02531.
    """

    sharded: ClassVar[bool] = False
    settings: ClassVar[dict[str, Any]] = {"strength": 1.0, "temperature": 2.0}

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if not self.config["temperature"] > 0:
            raise ConfigError("method.temperature is 0; expected a number above 0.")

    def attach(self, trainer: Any, context: TaskContext) -> None:
        """Keep the teacher's parameters, if there is something to protect."""
        self._teacher = None
        if context.reused:
            self._teacher = {n: p.detach().clone() for n, p in context.parameters.items()}

    def extra_loss(self, model: Any, inputs: Mapping[str, Any], outputs: Any) -> Any | None:
        """Return the distillation loss."""
        if self._teacher is None:
            return None
        model.eval()
        with torch.no_grad():
            teacher = functional_call(model, self._teacher, kwargs=dict(inputs)).logits
        model.train()
        labels = inputs["labels"]
        if not model.config.is_encoder_decoder:  # there, logits are for the next position's token
            labels = labels.roll(-1, dims=1)
        answers = labels >= 0
        return self.config["strength"] * distillation(
            outputs.logits[answers], teacher[answers], temperature=self.config["temperature"]
        )


def distillation(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Return T^2 * mean over tokens of KL(softmax(teacher / T) || softmax(student / T)), in nats.

    Args:
        student: logits, shape (tokens, vocabulary).
        teacher: the same of the teacher.
        temperature: T > 0; the larger, the more the unlikely tokens count.
    """
    student, teacher = (
        F.log_softmax(logits.float() / temperature, dim=-1) for logits in (student, teacher)
    )
    divergence = F.kl_div(student, teacher, log_target=True, reduction="batchmean")
    return temperature**2 * divergence
