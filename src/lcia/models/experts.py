"""A mixture of LoRA experts: expert routers weigh the parts of a stacked LoRA, token by token.

On a module with a LoRA of rank n r, W a matrix of shape (n, inputs), and x a token's input, the
experts' outputs B_i A_i x are weighted by softmax(W x)_i: the hook scales the n blocks of A x, so
peft's own forward, batches of mixed adapters included, does the rest.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

EXPERT_ROUTERS = "gates.safetensors"
"""Beside the adapter's own files: W by module name. Other code calls W a gate."""


def add_expert_routers(model: Any, *, experts: int, adapter: str) -> None:
    """Put trainable expert routers on a ``PeftModel``'s adapter; they start equal, W = 0."""
    _attach(
        model,
        {n: torch.zeros(experts, down.in_features) for n, down in _downs(model, adapter)},
        adapter=adapter,
        trainable=True,
    )


def load_expert_routers(model: Any, folder: Path, *, adapter: str, trainable: bool) -> None:
    """Put on an adapter the expert routers that its folder holds, if any."""
    if (folder / EXPERT_ROUTERS).is_file():
        _attach(model, load_file(folder / EXPERT_ROUTERS), adapter=adapter, trainable=trainable)


def save_expert_routers(model: Any, folder: Path) -> None:
    """Write the expert routers that are being trained to an adapter's folder, if there are any."""
    if hasattr(model, "expert_routers"):
        save_file(
            {_dotted(name): router.detach().cpu() for name, router in model.expert_routers.items()},
            folder / EXPERT_ROUTERS,
        )


def restore_expert_routers(model: Any, folder: Path) -> None:
    """Set the expert routers that are being trained to what ``save_expert_routers`` wrote."""
    stored = load_file(folder / EXPERT_ROUTERS)
    with torch.no_grad():
        for name, router in model.expert_routers.items():
            router.copy_(stored[_dotted(name)])


def _downs(model: Any, adapter: str) -> Iterator[tuple[str, Any]]:
    """Yield name and A of every module that the adapter adapts."""
    for name, module in model.named_modules():
        if adapter in getattr(module, "lora_A", ()):
            yield name, module.lora_A[adapter]


def _attach(model: Any, values: Mapping[str, Tensor], *, adapter: str, trainable: bool) -> None:
    routers = {}
    for name, down in _downs(model, adapter):
        routers[name] = nn.Parameter(values[name].to(down.weight), requires_grad=trainable)
        down.register_forward_hook(_scale_by(routers[name]))
    if trainable:
        # On the model as a whole: what is in an adapted module, peft saves with the adapter.
        model.expert_routers = nn.ParameterDict(
            {n.replace(".", "/"): router for n, router in routers.items()}
        )


def _dotted(name: str) -> str:
    return name.replace("/", ".")  # no parameter's own name may hold a dot


def _scale_by(router: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def scale(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        weights = F.linear(inputs[0], router).softmax(-1)
        return (output.unflatten(-1, (len(router), -1)) * weights.unsqueeze(-1)).flatten(-2)

    return scale
