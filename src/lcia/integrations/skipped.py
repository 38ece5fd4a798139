"""Whether Trainer's optimizer took the step it was asked for."""

from typing import Any

from torch.optim import Optimizer

from lcia.ema.average import overflowed


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
