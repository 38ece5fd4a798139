"""One LoRA for all tasks: an orthogonal start, and a merge whose share falls with 1 / sqrt(t)."""

import logging
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lcia.methods.base import Method, TaskContext
from lcia.methods.merge import start_of
from lcia.methods.stacking import factor_pairs

logger = logging.getLogger(__name__)

TASKS = "tasks"
"""How many tasks are merged, among what is carried on."""


class SLAO(Method):
    """Fine-tune from an orthogonal start, then merge into the adapter that all tasks share.

    Task t of a group starts from what task t - 1 was fine-tuned to, A with orthonormal rows:
    A <- Q^T of A_{t-1}^T = Q R, B <- B_{t-1}. At its end the stored adapter moves towards it by
    lambda = 1 / sqrt(t), as a change of the weights:

        dW*_t = dW*_{t-1} + lambda (dW_t - dW*_{t-1}),   dW = B A,

    cut to rank r by its singular values, half of each in A and half in B. What is trained besides
    LoRA factors moves by the same share. Beside the adapter A_t and B_t are stored.

    Source: SLAO, arXiv:2512.23017. Differs: the paper merges B alone and takes the newest A, which
    turns the old B by whatever A did; here the two changes of the weights are merged.
    """

    sharded: ClassVar[bool] = False

    def attach(self, trainer: Any, context: TaskContext) -> None:
        """Start from the last task's factors, A orthogonal, where a group is trained again."""
        self._stored = start_of(context)
        self._tasks = int(context.carried.get(TASKS, int(context.reused)))
        if not context.reused:
            return
        if not context.carried:
            logger.warning(
                "group %s: what its last task was fine-tuned to is not stored, so the start is the "
                "adapter itself, and it counts as one task.",
                context.group,
            )
        last = {**self._stored, **context.carried}
        with torch.no_grad():
            for name, parameter in context.parameters.items():
                parameter.copy_(last[name])
            for down, _ in factor_pairs(context.parameters):
                context.parameters[down].copy_(orthonormal_rows(last[down]))

    @torch.no_grad()
    def finish(self, context: TaskContext) -> Mapping[str, Any]:
        """Merge, and carry on what the task was fine-tuned to."""
        trained = start_of(context)
        self._tasks += 1
        if context.reused:
            share = 1 / math.sqrt(self._tasks)
            for name, value in merged(self._stored, trained, share).items():
                context.parameters[name].copy_(value)
        return {**trained, TASKS: torch.tensor(self._tasks)}


def merged(old: Mapping[str, Tensor], new: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return old + share (new - old): of the products B A for LoRA factors, else by element."""
    found = {name: torch.lerp(value, new[name], share) for name, value in old.items()}
    for down, up in factor_pairs(old):
        ups = torch.cat([(1 - share) * old[up], share * new[up]], dim=1)
        downs = torch.cat([old[down], new[down]])
        found[up], found[down] = cut(ups, downs, rank=len(old[down]))
    return found


def cut(up: Tensor, down: Tensor, *, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors of the matrix of a rank that is nearest to a product.

    Args:
        up: B, shape (outputs, any).
        down: A, shape (any, inputs).
        rank: that of what is returned.

    Returns:
        B of shape (outputs, rank) and A of shape (rank, inputs), in the dtype they came in; B A is
        nearest to ``up @ down`` in the Frobenius norm (Eckart and Young).
    """
    left, tall = torch.linalg.qr(up.double())
    right, wide = torch.linalg.qr(down.double().T)
    u, values, v = torch.linalg.svd(tall @ wide.T)
    size = min(rank, len(values))
    root = values[:size].sqrt()
    small_up = up.new_zeros(len(up), rank)
    small_down = down.new_zeros(rank, down.shape[1])
    small_up[:, :size] = left @ (u[:, :size] * root)
    small_down[:size] = root[:, None] * (v[:size] @ right.T)
    return small_up, small_down


def orthonormal_rows(down: Tensor) -> Tensor:
    """Return Q^T of A^T = Q R, R's diagonal positive; rows beyond the columns stay as they are."""
    q, r = torch.linalg.qr(down.double().T)
    signs = torch.where(r.diagonal() < 0, -1.0, 1.0)
    return torch.cat([(q * signs).T.to(down), down[q.shape[1] :]])
