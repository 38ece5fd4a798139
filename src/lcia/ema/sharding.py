"""Where the parts of a parameter are: whole on every rank, or spread over ranks by FSDP2."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, distribute_tensor

from lcia.errors import ConfigError


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that lives on this rank; a plain tensor is its own part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


NAMED = "expected names with parameters. Pass model.named_parameters()."


def without_ties(named_parameters: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return parameters by name, a tied one once, under its first name.

    Raises:
        ConfigError: they have no names.
    """
    first_name: dict[int, str] = {}
    parameters = {}
    if isinstance(named_parameters, nn.Module):
        raise ConfigError(f"named_parameters: is a {type(named_parameters).__name__}; {NAMED}")
    for entry in named_parameters:
        if not (isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str)):
            raise ConfigError(f"named_parameters: holds a {type(entry).__name__}; {NAMED}")
        name, parameter = entry
        if first_name.setdefault(id(parameter), name) == name:
            parameters[name] = parameter
    return parameters


class Shards:
    """What an average has to know about parameters spread over ranks.

    This one knows plain tensors (one process, or DDP, whose ranks hold the same) and the
    DTensors of FSDP2. Another way of sharding is a subclass.
    """

    def shape(self, parameter: Tensor) -> torch.Size:
        """Return the shape of the whole parameter."""
        return parameter.shape

    def groups(self, parameter: Tensor) -> list[ProcessGroup]:
        """Return the process groups the parameter is spread over, none if it is whole here."""
        if not isinstance(parameter, DTensor):
            return []
        mesh = parameter.device_mesh
        return [mesh.get_group(i) for i, p in enumerate(parameter.placements) if p.is_shard()]

    def full(self, values: Tensor, *, like: Tensor) -> Tensor:
        """Return the whole of which ``values`` is this rank's part; collective where sharded."""
        if not isinstance(like, DTensor):
            return values
        sharded = DTensor.from_local(
            values, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
        )
        return sharded.full_tensor()

    def part(self, values: Tensor, *, like: Tensor) -> Tensor:
        """Return this rank's part of a whole, laid out as ``like`` is; no communication."""
        values = values.detach().to(like.device)
        if not isinstance(like, DTensor):
            return values
        mesh, placements = like.device_mesh, like.placements
        return local(distribute_tensor(values, mesh, placements, src_data_rank=None))

    def propagate(self) -> None:
        """Tell whoever keeps further copies that the parameters were set; nobody here."""

    def share_sums(self, sums: Tensor, parameters: Sequence[Tensor]) -> None:
        """Add up the sums of sharded parameters over their ranks, in place.

        One all-reduce serves all parameters that are spread over the same ranks. The sums of a
        whole parameter are the same on every rank and stay as they are.

        Args:
            sums: shape (parameters, terms).
            parameters: the parameters, in the order of ``sums``.
        """
        rows: dict[ProcessGroup, list[int]] = {}
        for row, parameter in enumerate(parameters):
            for group in self.groups(parameter):
                rows.setdefault(group, []).append(row)
        for group, picked in rows.items():
            values = sums[picked]
            torch.distributed.all_reduce(values, group=group)
            sums[picked] = values
