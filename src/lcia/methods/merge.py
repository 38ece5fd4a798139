"""Precision-weighted merging at the end of a task, over grouped adapters."""

from collections.abc import Mapping
from typing import Any, ClassVar

from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from lcia.ema import PrecisionMerge
from lcia.integrations.transformers import checkpoint_folder
from lcia.methods.base import Method, TaskContext

ACCUMULATED = "precision_merge.safetensors"


class Merge(Method):
    """Train plainly, then move each element towards the new task as far as its precision allows.

    theta* = theta_old + w (theta - theta_old), w = F_new / (F_new + lambda F_old), F the summed
    squared gradients of a task, scaled to sum 1. The sums travel with the group.

    Source: ``lcia.ema.PrecisionMerge``.
    """

    groupings: ClassVar[tuple[str, ...]] = ("similar", "one", "per_task")
    sharded: ClassVar[bool] = False
    settings: ClassVar[dict[str, Any]] = {"old_weight": 0.1}

    def attach(self, trainer: Any, context: TaskContext) -> None:
        """Sum squared gradients from the first task of a group on."""
        self._theta_old = {n: p.detach().clone() for n, p in context.parameters.items()}
        self._merge = PrecisionMerge(
            context.parameters.items(),
            old_weight=self.config["old_weight"],
            precision_old=context.carried or None,
        )
        trainer.add_callback(_Accumulate(self._merge))

    def finish(self, context: TaskContext) -> Mapping[str, Any]:
        """Merge into what the group knew; carry on the summed precision."""
        if context.reused:
            self._merge.merge(self._theta_old)
        return self._merge.precision()


class _Accumulate(TrainerCallback):
    """Adds every step's squared gradients; its sums travel with Trainer's checkpoints."""

    def __init__(self, merge: PrecisionMerge) -> None:
        self._merge = merge

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step:
            self._merge.load_state_dict(load_file(checkpoint_folder(args, state) / ACCUMULATED))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._merge.accumulate()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        sums = self._merge.state_dict()  # collective where parameters are sharded
        if state.is_world_process_zero:
            save_file(sums, checkpoint_folder(args, state) / ACCUMULATED)
