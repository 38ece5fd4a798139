"""Replay timed by how far the parameters moved, along a forgetting curve."""

import math
import random
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import TrainerCallback

from lcia.data.sample import Sample
from lcia.files import read_json, write_json
from lcia.integrations.transformers import checkpoint_folder
from lcia.methods.base import Method, TaskContext
from lcia.methods.replay import quota

DAYS = (1, 2, 4, 7, 15, 30)
"""When remembered samples are replayed, in days since the task began; after the last, every 30."""


class Forever(Method):
    """Replays remembered samples when the parameters have drifted by 1, 2, 4, 7, 15, 30, ... days.

    Time is what the optimizer moved: tau_s = sum over steps up to s of |theta_s - theta_{s-1}|_2.
    A day is the tau of the task's first ``day`` steps, so that days grow longer in steps as the
    learning rate falls. When a replay is due, the steps that follow add strength * L(batch of
    remembered samples) to their loss until each was seen once, in an order drawn by seed.
    Remembered are ``per_task`` samples of every earlier task.

    Source: FOREVER, arXiv:2601.03938: model time from the size of the updates, and the intervals
    of the forgetting curve. Differs: its regularisation by the intensity of the updates is left
    out, and how long a day is and how the samples are gone through are this project's.
    """

    sharded: ClassVar[bool] = False
    settings: ClassVar[dict[str, Any]] = {
        "per_task": 20,
        "batch_size": 8,
        "day": 4,
        "strength": 1.0,
    }

    def attach(self, trainer: Any, context: TaskContext) -> None:
        """Start the clock, if anything is remembered."""
        self._clock, self._context = None, context
        if context.remembered:
            self._clock = Clock(context, day=self.config["day"], batch=self.config["batch_size"])
            trainer.add_callback(self._clock)

    def extra_loss(self, model: Any, inputs: Mapping[str, Any], outputs: Any) -> Any | None:
        """Return the loss of the step's batch of remembered samples, if a replay goes on."""
        if self._clock is None or not self._clock.batch:
            return None
        samples = [self._context.remembered[i] for i in self._clock.batch]
        return self.config["strength"] * model(**self._context.encode(samples)).loss

    def remember(self, context: TaskContext) -> Sequence[Sample]:
        """Keep what is remembered and a quota of the task."""
        return [*context.remembered, *quota(context, self.config["per_task"])]


class Clock(TrainerCallback):
    """Tells by the drift of the parameters which remembered samples a step replays.

    Args:
        context: its parameters are watched, what it remembers is replayed.
        day: how many of the first steps make a day.
        batch: how many samples a step replays.

    Attributes:
        drift: tau, in the parameters' unit.
        replays: how many came due.
    """

    FILE = "replay_clock.json"
    _KEPT = ("drift", "replays", "_steps", "_day", "_pending")

    def __init__(self, context: TaskContext, *, day: int, batch: int) -> None:
        self._context, self._first, self._size = context, day, batch
        self.drift, self.replays = 0.0, 0
        self._steps, self._day = 0, 0.0
        self._pending: list[int] = []

    @property
    def batch(self) -> list[int]:
        """Places of the remembered samples that the coming step replays."""
        return self._pending[: self._size]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Go on from the checkpoint that training resumes from, if it does."""
        if state.global_step:
            kept = read_json(checkpoint_folder(args, state) / self.FILE)
            for name in self._KEPT:
                setattr(self, name, kept[name])
        self._last = self._flat()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let time pass by the step just taken."""
        now = self._flat()
        self.drift += float(torch.linalg.vector_norm(now - self._last))
        self._last = now
        self._steps += 1
        self._pending = self._pending[self._size :]
        if self._steps == self._first:
            self._day = self.drift
        replays = due(self.drift / self._day) if self._day > 0 else 0
        if replays > self.replays:
            self.replays = replays
            self._pending = list(range(len(self._context.remembered)))
            random.Random(f"{self._context.seed}/{self.replays}").shuffle(self._pending)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the time into the checkpoint just saved."""
        if state.is_world_process_zero:
            values = {name: getattr(self, name) for name in self._KEPT}
            write_json(checkpoint_folder(args, state) / self.FILE, values)

    def _flat(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self._context.parameters.values()])


def due(days: float) -> int:
    """Return how many replays are due after so many days."""
    if not math.isfinite(days):  # diverged, which ends training anyway
        return 0
    return bisect_right(DAYS, days) + max(0, math.floor(days / DAYS[-1]) - 1)
