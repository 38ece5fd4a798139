"""Orthogonal subspaces: every task a LoRA of its own, at right angles to the earlier ones."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from lcia.methods.stacking import Stacking, rank_dim


class OLoRA(Stacking):
    """Trains a new LoRA beside the frozen earlier ones, its A kept orthogonal to theirs.

    Adds strength * sum over modules of |A_old A_new^T|_1 + shrink * sum of |A_new|_2 + |B_new|_2.

    Source: arXiv:2310.14152; the L1 norm (the paper squares) and ``shrink`` as in its code.
    """

    settings: ClassVar[dict[str, Any]] = {"strength": 0.5, "shrink": 0.0}

    def extra_loss(self, model: Any, inputs: Mapping[str, Any], outputs: Any) -> Any | None:
        """Return the penalty on overlap, and on the new LoRA's size."""
        if not self._earlier:
            return None
        halves = {name: self._halves(name, p) for name, p in self._factors.items()}
        overlap = [
            (old.detach().flatten(1) @ new.flatten(1).T).abs().sum()
            for name, (old, new) in halves.items()
            if rank_dim(name) == 0
        ]
        sizes = [torch.linalg.vector_norm(new) for _, new in halves.values()]
        return self.config["strength"] * sum(overlap) + self.config["shrink"] * sum(sizes)
