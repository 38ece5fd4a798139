"""Methods that keep samples: replay among the new ones, and A-GEM, which guards their loss."""

import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import TrainerCallback

from lcia.data.sample import Sample
from lcia.methods.base import Method, TaskContext


class Replay(Method):
    """``per_task`` samples of every earlier task, drawn by seed, are shuffled among the new ones.

    Source: experience replay as in arXiv:1902.10486; here the remembered samples are a part
    of the training set instead of a second batch, so each step sees its share of them.
    """

    settings: ClassVar[dict[str, Any]] = {"per_task": 20}

    def samples(self, context: TaskContext) -> Sequence[Sample]:
        """Train on the task and what is remembered."""
        return with_remembered(context)

    def remember(self, context: TaskContext) -> Sequence[Sample]:
        """Keep what is remembered and a quota of the task."""
        return [*context.remembered, *quota(context, self.config["per_task"])]


def with_remembered(context: TaskContext) -> list[Sample]:
    """Return the task's training samples and those that its group remembers."""
    return [*context.task.train, *context.remembered]


def quota(context: TaskContext, count: int) -> list[Sample]:
    """Return ``count`` training samples of the task, or all if it has fewer; drawn by its seed.

    Validation samples are left out: trained on again, they would hide what is forgotten.
    Of corrections all stay, unless none may: the next one is not to undo them.
    """
    held = set(map(id, context.held))
    train = [sample for sample in context.task.train if id(sample) not in held]
    if count and context.task.corrects:
        return train
    return random.Random(context.seed).sample(train, min(count, len(train)))


class AGEM(Method):
    """Takes from each step's gradient g the part that points against that of remembered samples.

    Before every optimizer step a batch of remembered samples gives g_ref; where <g, g_ref> < 0,
    g becomes g - <g, g_ref> / <g_ref, g_ref> g_ref. Remembered are ``per_task`` samples of
    every earlier task. Dropout is off for g_ref.

    Source: arXiv:1812.00420, equation 11. g is the accumulated, clipped gradient: the projection
    commutes with clipping's scaling, and does not lengthen.
    """

    sharded: ClassVar[bool] = False
    settings: ClassVar[dict[str, Any]] = {"per_task": 20, "batch_size": 8}

    def attach(self, trainer: Any, context: TaskContext) -> None:
        """Project before every step, if anything is remembered."""
        if context.remembered:
            trainer.add_callback(_Project(trainer.model, context, self.config["batch_size"]))

    def remember(self, context: TaskContext) -> Sequence[Sample]:
        """Keep what is remembered and a quota of the task."""
        return [*context.remembered, *quota(context, self.config["per_task"])]


class _Project(TrainerCallback):
    def __init__(self, model: Any, context: TaskContext, batch_size: int) -> None:
        self._model = model
        self._context = context
        self._batch_size = min(batch_size, len(context.remembered))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # By the step's number, so that a resumed run draws what an uninterrupted one does.
        draw = random.Random(f"{self._context.seed}/{state.global_step}")
        batch = self._context.encode(draw.sample(self._context.remembered, self._batch_size))
        parameters = list(self._context.parameters.values())
        reference = _gradient(self._model, parameters, batch)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        projected = project(torch.cat([grad.reshape(-1) for grad in grads]), reference)
        pieces = projected.split([p.numel() for p in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)


def project(gradient: Tensor, reference: Tensor) -> Tensor:
    """Return the vector nearest to ``gradient`` that does not point against ``reference``.

    g - min(<g, g_ref>, 0) / <g_ref, g_ref> g_ref; both are vectors of one length.
    """
    along = torch.dot(gradient, reference)
    if along >= 0 or not reference.any():
        return gradient
    return gradient - along / torch.dot(reference, reference) * reference


def _gradient(model: Any, parameters: list[Tensor], batch: Mapping[str, Any]) -> Tensor:
    model.eval()
    # Not backward(): DDP's hooks would take these gradients for those of the step.
    grads = torch.autograd.grad(model(**batch).loss, parameters, materialize_grads=True)
    model.train()
    return torch.cat([grad.reshape(-1) for grad in grads])
