"""The previous step's gradients, kept without a copy wherever the training loop allows it."""

from collections.abc import Mapping

from torch import Tensor

from lcia.ema.sharding import local
from lcia.errors import TrainingError

_SEEN = "_lcia_seen"


class PreviousGradients:
    """Gradients of each tensor's last step.

    A loop that sets gradients to None gets a new tensor at the next backward pass: the old one
    is kept by reference and costs no copy. A loop that zeroes gradients, or DDP and FSDP with
    gradients inside a shared buffer, writes into the same memory again: there a copy is kept.
    Which of the two it is shows at the second step: a gradient tensor seen before is reused.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._started: set[str] = set()

    def get(self, name: str, grad: Tensor | None) -> Tensor | None:
        """Return the previous local gradient of a tensor whose current gradient is ``grad``.

        Raises:
            TrainingError: a gradient kept by reference was written over since, so its value
                is lost.
        """
        kept = self._kept.get(name)
        version = self._versions.get(name)
        if kept is not None and version is not None and (kept is grad or kept._version != version):
            raise TrainingError(
                f"{name}: the previous step's gradient was written over. The training loop set "
                "gradients to None before and now zeroes or changes them in place; keep to one "
                "of the two (optimizer.zero_grad(set_to_none=True) is the faster)."
            )
        return None if kept is None else local(kept)

    def keep(self, name: str, grad: Tensor) -> None:
        """Keep ``grad`` for the next step, by reference if its memory will not be reused."""
        renewed = name in self._started and not hasattr(grad, _SEEN)
        self._started.add(name)
        setattr(grad, _SEEN, True)
        values = local(grad)
        if renewed and _owns_memory(values):
            self._kept[name], self._versions[name] = grad, grad._version
            return
        own = self._kept.get(name)
        if own is None or name in self._versions or own.shape != values.shape:
            self._kept[name] = values.detach().clone()
            self._versions.pop(name, None)
        else:
            own.copy_(values)

    def state(self) -> dict[str, Tensor]:
        """Return the local gradients by name."""
        return {name: local(kept) for name, kept in self._kept.items()}

    def load(self, gradients: Mapping[str, Tensor]) -> None:
        """Replace all gradients by copies of the given local ones."""
        self._kept = {name: grad.detach().clone() for name, grad in gradients.items()}
        self._versions.clear()
        self._started.clear()


def _owns_memory(values: Tensor) -> bool:
    # DDP's bucket of a single gradient is as large as the gradient, yet a view of it.
    whole = values.untyped_storage().nbytes() == values.numel() * values.element_size()
    return whole and not values._is_view()
