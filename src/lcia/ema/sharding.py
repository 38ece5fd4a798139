"""Full, FSDP2-sharded and replicated tensors seen alike: a local part and a full form."""

import torch
from torch import Tensor
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
    """Return this rank's part of a full tensor, laid out as ``like`` is."""
    if not isinstance(like, DTensor):
        return values
    return local(distribute_tensor(values, like.device_mesh, like.placements))


def is_sharded(tensor: Tensor) -> bool:
    """Whether other ranks hold other parts of the tensor."""
    return isinstance(tensor, DTensor) and any(p.is_shard() for p in tensor.placements)


def share_sums(sums: Tensor, parameters: list[Tensor]) -> None:
    """Add up, in place and in one all-reduce, the sums of tensors that are sharded.

    Args:
        sums: shape (tensors, terms).
        parameters: the tensors, all on one device mesh where sharded.
    """
    meshes = {p.device_mesh for p in parameters if isinstance(p, DTensor) and is_sharded(p)}
    for mesh in meshes:
        for dim in range(mesh.ndim):
            torch.distributed.all_reduce(sums, group=mesh.get_group(dim))
