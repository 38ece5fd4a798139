"""Full, FSDP2-sharded and replicated tensors seen alike: a local part and a full form."""

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that lives on this rank; a plain tensor is its own part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(values: Tensor, *, like: Tensor) -> Tensor:
    """Return local values as the full tensor they are part of; collective where sharded."""
    if not isinstance(like, DTensor):
        return values
    sharded = DTensor.from_local(
        values, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )
    return sharded.full_tensor()


def part(values: Tensor, *, like: Tensor) -> Tensor:
    """Return this rank's part of a full tensor, laid out as ``like`` is; no communication."""
    if not isinstance(like, DTensor):
        return values
    return local(distribute_tensor(values, like.device_mesh, like.placements, src_data_rank=None))


def is_sharded(tensor: Tensor) -> bool:
    """Whether other ranks hold other parts of the tensor."""
    return isinstance(tensor, DTensor) and any(p.is_shard() for p in tensor.placements)


def share_sums(sums: Tensor, parameters: list[Tensor]) -> None:
    """Add up the sums of sharded tensors in place: one all-reduce for all tensors of a mesh.

    Replicated tensors are whole on every rank, so their sums stay as they are. Rows that FSDP2
    pads a shard with are not part of the local tensor, so nothing is counted twice.

    Args:
        sums: shape (tensors, terms).
        parameters: the tensors, in the order of ``sums``.
    """
    rows: dict[tuple[DeviceMesh, int], list[int]] = {}
    for row, parameter in enumerate(parameters):
        if isinstance(parameter, DTensor):
            for dim, placement in enumerate(parameter.placements):
                if placement.is_shard():
                    rows.setdefault((parameter.device_mesh, dim), []).append(row)
    for (mesh, dim), picked in rows.items():
        values = sums[picked]
        torch.distributed.all_reduce(values, group=mesh.get_group(dim))
        sums[picked] = values
