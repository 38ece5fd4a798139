"""Dynamic EMA and merging for transformers' Trainer and all that build on it, TRL's among them."""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer
from transformers import DefaultFlowCallback, Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from lcia.ema import DynamicEMA, EMAStats, PrecisionMerge, Rule, build_rule
from lcia.ema.average import overflowed
from lcia.ema.record import FILE_NAME, load_state, save_state
from lcia.errors import TrainingError
from lcia.integrations.deepspeed import DeepSpeedEMA, DeepSpeedMerge

logger = logging.getLogger(__name__)


class DynamicEMACallback(TrainerCallback):
    """Keeps a dynamic EMA of the trained parameters during ``Trainer.train()``.

    The average starts from the parameters at the start of training, moves after every optimizer
    step with the gradients that step used (accumulated, unscaled, clipped), travels with the
    Trainer's checkpoints as ``dynamic_ema.safetensors``, and becomes the parameters at the end.
    A step that fp16 loss scaling skipped does not move it.

    What training ends with is also what is evaluated while it goes on: Trainer's evaluations see
    the average. With ``load_best_model_at_end`` the parameters become the average of the
    checkpoint that scored best. (Both unless ``copy_at_end`` is False.)

    Trainer's logs get ``ema/beta_mean``, ``ema/beta_min``, ``ema/beta_max``,
    ``ema/horizon_steps``, ``ema/drift`` and ``ema/fallback/<reason>`` (shares) over the steps
    since the last log. Call ``attach(trainer)`` instead of passing the callback to the Trainer
    so that TensorBoard, W&B and trackio get them too: they are told first.

    Args:
        rule: balance rule, its name, or a mapping such as ``{"name": "release", "scale": 2.0}``.
        initial: values theta* starts from, by parameter name, if not the parameters' own.
        copy_at_end: whether the parameters become theta* when training ends.
        on_step: called after every update with a record for a journal: ``step``, ``beta_mean``,
            ``beta_min``, ``beta_max``, ``horizon_steps``, ``drift_l1`` and ``fallback`` shares.
        resume_from: the checkpoint folder whose average training resumes with; by default
            ``checkpoint-<step>`` in the Trainer's output folder.

    Attributes:
        ema: the ``DynamicEMA`` of the current or last training.
    """

    ema: DynamicEMA

    def __init__(
        self,
        *,
        rule: Rule | Mapping[str, Any] | str = "release",
        initial: Mapping[str, Tensor] | None = None,
        copy_at_end: bool = True,
        on_step: Callable[[dict[str, Any]], None] | None = None,
        resume_from: str | Path | None = None,
    ) -> None:
        self.rule = build_rule(rule)
        self._initial = initial
        self._copy_at_end = copy_at_end
        self._on_step = on_step
        self._resume_from = resume_from
        self._is_first = False
        self._swap = ExitStack()
        self._is_average = self._trains = False

    def attach(self, trainer: Trainer) -> "DynamicEMACallback":
        """Put the callback before all reporters of a Trainer, so that they get its logs.

        Only what decides when Trainer logs, evaluates and saves stays before it.
        """
        handler = trainer.callback_handler
        if self not in handler.callbacks:
            trainer.add_callback(self)
        handler.callbacks.sort(
            key=lambda c: 0 if isinstance(c, DefaultFlowCallback) else 1 if c is self else 2
        )
        self._is_first = True
        return self

    def summary(self) -> dict[str, Any]:
        """Return the figures of the whole training: steps, beta, horizon, fallback shares."""
        return self.ema.stats().as_dict()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the average from the parameters, or from the checkpoint training resumes from."""
        model, optimizer = kwargs["model"], kwargs.get("optimizer")
        self._skipped = SkippedSteps(optimizer)
        rule = self.rule.for_training(state.max_steps)
        if PartialState().distributed_type == DistributedType.DEEPSPEED:
            self.ema = DeepSpeedEMA(model, optimizer, rule=rule, initial=self._initial)
        else:
            self.ema = DynamicEMA(model.named_parameters(), rule=rule, initial=self._initial)
        if state.global_step:
            folder = self._resume_from or checkpoint_folder(args, state)
            self.ema.load_state_dict(load_state(Path(folder) / FILE_NAME, rule=self.ema.rule))
        self._trains = True
        if args.eval_on_start:
            self._show_average()
        if args.report_to and not self._is_first:
            logger.warning(
                "DynamicEMACallback: %s will not get the ema/* figures; call "
                "callback.attach(trainer) instead of passing it in callbacks=[...].",
                ", ".join(args.report_to),
            )

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the average by the step just taken.

        Raises:
            TrainingError: there are no gradients to compute beta from.
        """
        if self._skipped.last():
            return
        self.ema.update()
        if self._on_step is not None:
            self._on_step({**self.ema.last_step().as_dict(), "step": state.global_step + 1})

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make sure that the parameters are trained, not the average."""
        self._put_back()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the average be evaluated, where Trainer will evaluate after this step."""
        if control.should_evaluate:
            self._show_average()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the average be evaluated, where Trainer will evaluate after this epoch."""
        self.on_step_end(args, state, control, **kwargs)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Put the parameters back after an evaluation."""
        if self._trains and self._copy_at_end and not self._is_average:
            logger.warning(
                "DynamicEMACallback: the evaluation at step %d saw the parameters, not the "
                "average: another callback asked for it after this one was told of the step.",
                state.global_step,
            )
        self._put_back()

    def _show_average(self) -> None:
        if self._copy_at_end and not self._is_average:
            self._swap.enter_context(self.ema.swapped())
            self._is_average = True

    def _put_back(self) -> None:
        self._swap.close()
        self._is_average = False

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the figures since the last log to the Trainer's logs and history."""
        logs = kwargs.get("logs")
        if logs is None or not hasattr(self, "ema"):  # evaluated before any training
            return
        recent = self.ema.recent_stats()
        if not recent.steps:
            return
        figures = _figures(recent)
        logs.update(figures)
        if state.log_history:
            state.log_history[-1].update(figures)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the average's state into the checkpoint just saved."""
        self._put_back()
        averages = self.ema.state_dict()  # collective where parameters are sharded
        if state.is_world_process_zero:
            folder = checkpoint_folder(args, state)
            if not folder.is_dir():
                raise TrainingError(f"{folder}: no such checkpoint folder to save the average in.")
            save_state(folder / FILE_NAME, averages, rule=self.ema.rule)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the parameters the average, or that of the best checkpoint if Trainer loads it."""
        self._put_back()
        self._trains = False
        if not self._copy_at_end:
            return
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            best = Path(state.best_model_checkpoint) / FILE_NAME
            self.ema.assign(load_state(best, rule=self.ema.rule)["shadow"])
        self.ema.copy_to_parameters()


def checkpoint_folder(args: Any, state: Any) -> Path:
    """Return where Trainer keeps the checkpoint of the step it is at, for callbacks."""
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _figures(stats: EMAStats) -> dict[str, float]:
    shares = {f"ema/fallback/{reason}": share for reason, share in stats.shares.items()}
    return {
        "ema/beta_mean": stats.beta_mean,
        "ema/beta_min": stats.beta_min,
        "ema/beta_max": stats.beta_max,
        "ema/horizon_steps": stats.horizon_steps,
        "ema/drift": stats.drift_l1,
        **shares,
    }


MERGE_FILE = "precision_merge.safetensors"


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
            self.merge.load_state_dict(load_file(checkpoint_folder(args, state) / MERGE_FILE))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the squared gradients of the step just taken."""
        if not self._skipped.last():
            self.merge.accumulate()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the sums into the checkpoint just saved."""
        sums = self.merge.state_dict()
        if state.is_world_process_zero:
            save_file(sums, checkpoint_folder(args, state) / MERGE_FILE)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the parameters the merge."""
        if self._theta_old is not None:
            self.merge.merge(self._theta_old)


class SkippedSteps:
    """Knows whether fp16 loss scaling skipped an optimizer's last step.

    accelerate says so (``step_was_skipped``) where the gradient scaler did not call the optimizer.
    A fused one, Trainer's default on CUDA, is always called and finds the infinities itself:
    accelerate takes that step for taken, so torch's post-step hook asks the optimizer.

    Args:
        optimizer: what accelerate prepared.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._overflowed = False
        inner = getattr(optimizer, "optimizer", optimizer)
        if isinstance(inner, Optimizer):
            inner.register_step_post_hook(self._after_step)

    def last(self) -> bool:
        """Return whether the last step was skipped."""
        return self._overflowed or getattr(self._optimizer, "step_was_skipped", False)

    def _after_step(self, stepped: Optimizer, args: Any, kwargs: Any) -> None:
        self._overflowed = overflowed(stepped)
