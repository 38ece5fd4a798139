"""FSDP2 by lcia itself: torch's ``fully_shard``, the same on CPUs and on GPUs.

accelerate shards on GPUs only, so what it does could not be tested without. The optimizer's state
is gathered into checkpoints, which an adapter's is small enough for: they are those of one process
and load on any number.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lcia.distributed.launch import state
from lcia.ema.sharding import Shards
from lcia.errors import ConfigError


def shard(model: Any, *, reshard_after_forward: bool, layers: Sequence[str] = ()) -> None:
    """Spread all parameters over the processes, in place, each layer to be gathered at once.

    Args:
        model: a ``PeftModel``, whole on each process and on its device.
        reshard_after_forward: whether a layer's parameters are freed between its forward and its
            backward pass; if not, they are gathered once a batch and take more memory.
        layers: class names of the layers; by default those the model must not be split in.

    Raises:
        ConfigError: the model has no such layers.
    """
    base = model.get_base_model()
    # Not the vision tower: a process without one in its batch would not take part.
    searched = base.get_decoder() if hasattr(base.config, "vision_config") else base
    names = set(layers or getattr(searched, "_no_split_modules", None) or ())
    found = [module for module in searched.modules() if type(module).__name__ in names]
    if not found:
        classes = {type(m).__name__ for m in searched.modules() if isinstance(m, nn.Module)}
        likely = sorted(name for name in classes if name.endswith(("Layer", "Block")))
        raise ConfigError(
            f"training.fsdp_config.transformer_layer_cls_to_wrap: the model has no "
            f"{' or '.join(sorted(names)) or 'layers it names'}. Name one of: "
            f"{', '.join(likely or sorted(classes))}."
        )
    mesh = init_device_mesh(base.device.type, (state().num_processes,))
    for layer in found:
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshard_after_forward)
    fully_shard(model, mesh=mesh, reshard_after_forward=reshard_after_forward)


def whole(tensor: Tensor) -> Tensor:
    """Return a parameter, gathered where it is spread: a collective then."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_parameters(model: Any) -> dict[str, Tensor]:
    """Return the trained parameters by name, gathered on each process: a collective."""
    trained = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    return {name: whole(parameter.detach()).cpu() for name, parameter in trained}


def gathered(tree: Any) -> Any:
    """Return nested dicts and lists with all that is spread in them gathered; a collective."""
    if isinstance(tree, dict):
        return {key: gathered(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [gathered(value) for value in tree]
    return whole(tree.detach()).cpu() if isinstance(tree, DTensor) else tree


def scattered(state: dict[str, Any], optimizer: Any) -> dict[str, Any]:
    """Return an optimizer's gathered state with this process's part of what is spread.

    Args:
        state: as ``state_dict()`` has it.
        optimizer: that takes it.
    """
    shards = Shards()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def part(value: Any, like: Tensor) -> Any:
        if not isinstance(like, DTensor) or not isinstance(value, Tensor) or not value.ndim:
            return value
        return DTensor.from_local(
            shards.part(value, like=like),
            like.device_mesh,
            like.placements,
            shape=like.shape,
            stride=like.stride(),
        )

    parts = {
        i: {key: part(value, parameters[i]) for key, value in values.items()}
        for i, values in state["state"].items()
    }
    return {**state, "state": parts}
