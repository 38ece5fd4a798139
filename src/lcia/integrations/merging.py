"""Precision-weighted merging for transformers' Trainer."""

from collections.abc import Mapping
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

from lcia.ema import PrecisionMerge
from lcia.integrations.deepspeed import DeepSpeedMerge
from lcia.integrations.skipped import SkippedSteps
from lcia.integrations.transformers import checkpoint_folder

FILE_NAME = "precision_merge.safetensors"


class PrecisionMergeCallback(TrainerCallback):
    """Sums squared gradients during ``Trainer.train()`` and merges into ``theta_old`` at its end.

    The sums travel with the Trainer's checkpoints as ``precision_merge.safetensors``. Add it after
    a ``DynamicEMACallback``: then the average is what is merged.

    Args:
        theta_old: full values of the trained parameters before the task, by name; None only sums,
            for a first task.
        old_weight: as for ``PrecisionMerge``.
        precision_old: as for ``PrecisionMerge``.
    """

    merge: PrecisionMerge

    def __init__(
        self,
        *,
        theta_old: Mapping[str, Tensor] | None,
        old_weight: float,
        precision_old: Mapping[str, Tensor] | None,
    ) -> None:
        self._theta_old = theta_old
        self._settings: dict[str, Any] = {"old_weight": old_weight, "precision_old": precision_old}

    def precision(self, *, alone: bool = False) -> dict[str, Tensor]:
        """Return what to carry to the next task; collective where parameters are sharded.

        Args:
            alone: only this task's, for a group of its own.
        """
        return self.merge.precision(alone=alone)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the sums, or take them from the checkpoint training resumes from."""
        model, optimizer = kwargs["model"], kwargs.get("optimizer")
        self._skipped = SkippedSteps(optimizer)
        if PartialState().distributed_type == DistributedType.DEEPSPEED:
            self.merge = DeepSpeedMerge(model, optimizer, **self._settings)
        else:
            self.merge = PrecisionMerge(model.named_parameters(), **self._settings)
        if state.global_step:
            self.merge.load_state_dict(load_file(checkpoint_folder(args, state) / FILE_NAME))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the squared gradients of the step just taken."""
        if not self._skipped.last():
            self.merge.accumulate()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the sums into the checkpoint just saved."""
        sums = self.merge.state_dict()
        if state.is_world_process_zero:
            save_file(sums, checkpoint_folder(args, state) / FILE_NAME)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the parameters the merge."""
        if self._theta_old is not None:
            self.merge.merge(self._theta_old)
