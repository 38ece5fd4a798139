"""Training that diverges ends at that step, and no version holds a value that is not a number."""

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import reduce
from safetensors import safe_open
from torch import Tensor
from transformers import TrainerCallback

from lcia.ema.sharding import local
from lcia.errors import DivergenceError
from lcia.integrations.transformers import SkippedSteps


class FiniteSteps(TrainerCallback):
    """Ends training at the first step whose loss, gradient norm or parameters are not finite.

    Trainer has to log every step and must not hide NaN (``logging_nan_inf_filter``). What it logs
    is the same on every process, so all of them end. A step that fp16 loss scaling skipped may
    have infinite gradients: it moved nothing.

    Args:
        task: its name, for the message.
    """

    def __init__(self, task: str) -> None:
        self._task = task

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the parameters that are trained."""
        self._parameters = [p for p in kwargs["model"].parameters() if p.requires_grad]
        self._skipped = SkippedSteps(kwargs.get("optimizer"))

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the step that is logged.

        Raises:
            DivergenceError: a value is not finite.
        """
        logs = kwargs.get("logs") or {}
        if "loss" not in logs:
            return
        if not _is_finite(logs["loss"]):
            self._end(state.global_step, args, f"the loss is {logs['loss']}")
        norm = logs.get("grad_norm")
        if norm is not None and not _is_finite(norm) and not self._skipped.last():
            self._end(state.global_step, args, f"the gradient's norm is {norm}")
        if not _all_finite(self._parameters, args):
            self._end(state.global_step, args, "parameters are not finite")

    def _end(self, step: int, args: Any, found: str) -> None:
        raise DivergenceError(
            f"task '{self._task}', step {step}: {found}; training diverged. The assistant was left "
            "as it was. Its settings stay: make a new one, or for a stream another output, with "
            f"a training.learning_rate below {args.learning_rate:g}; or look for samples without "
            "an answer."
        )


def check_finite(folder: Path) -> None:
    """Check every tensor of an adapter's folder, what a method carries on among them.

    Raises:
        DivergenceError: a tensor holds NaN or infinity.
    """
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (safe_open has keys() but is no mapping)
                values = file.get_tensor(name)
                if values.is_floating_point() and not values.isfinite().all():
                    raise DivergenceError(
                        f"{path}: '{name}' holds values that are not finite, so no version is "
                        "made of it. Train with a lower training.learning_rate, or another method."
                    )


def _is_finite(value: float) -> bool:
    return value - value == 0


def _all_finite(parameters: list[Tensor], args: Any) -> bool:
    """Tell whether the parts of the parameters on all processes are finite, on all alike."""
    parts = [local(getattr(p, "ds_tensor", p)).detach() for p in parameters]
    largest = torch.nn.utils.get_total_norm([p for p in parts if p.numel()], float("inf"))
    if args.world_size > 1:
        # Infinity less infinity is NaN, and so is a sum with NaN: all see what one of them has.
        largest = reduce((largest - largest).to(args.device), "sum")
    return bool(largest.isfinite())
