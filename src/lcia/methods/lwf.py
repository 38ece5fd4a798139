"""Learning without forgetting: the model before the task as a teacher."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from lcia.errors import ConfigError
from lcia.methods.base import Method, TaskContext


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
