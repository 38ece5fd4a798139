"""Token-level gates over the parts of a stacked LoRA: a mixture of LoRA experts.

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

GATES = "gates.safetensors"
"""Beside the adapter's own files: W by module name."""


def add_gates(model: Any, *, experts: int, adapter: str) -> None:
    """Put trainable gates on a ``PeftModel``'s adapter; they start equal, W = 0."""
    _attach(
        model,
        {n: torch.zeros(experts, down.in_features) for n, down in _downs(model, adapter)},
        adapter=adapter,
        trainable=True,
    )


def load_gates(model: Any, folder: Path, *, adapter: str, trainable: bool) -> None:
    """Put on an adapter the gates that its folder holds, if any."""
    if (folder / GATES).is_file():
        _attach(model, load_file(folder / GATES), adapter=adapter, trainable=trainable)


def save_gates(model: Any, folder: Path) -> None:
    """Write the gates that are being trained to an adapter's folder, if there are any."""
    if hasattr(model, "gates"):
        save_file(
            {_dotted(name): gate.detach().cpu() for name, gate in model.gates.items()},
            folder / GATES,
        )


def restore_gates(model: Any, folder: Path) -> None:
    """Set the gates that are being trained to what ``save_gates`` wrote."""
    stored = load_file(folder / GATES)
    with torch.no_grad():
        for name, gate in model.gates.items():
            gate.copy_(stored[_dotted(name)])


def _downs(model: Any, adapter: str) -> Iterator[tuple[str, Any]]:
    """Yield name and A of every module that the adapter adapts."""
    for name, module in model.named_modules():
        if adapter in getattr(module, "lora_A", ()):
            yield name, module.lora_A[adapter]


def _attach(model: Any, values: Mapping[str, Tensor], *, adapter: str, trainable: bool) -> None:
    gates = {}
    for name, down in _downs(model, adapter):
        gates[name] = nn.Parameter(values[name].to(down.weight), requires_grad=trainable)
        down.register_forward_hook(_scale_by(gates[name]))
    if trainable:
        # On the model as a whole: what is in an adapted module, peft saves with the adapter.
        model.gates = nn.ParameterDict({n.replace(".", "/"): gate for n, gate in gates.items()})


def _dotted(name: str) -> str:
    return name.replace("/", ".")  # no parameter's own name may hold a dot


def _scale_by(gate: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def scale(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        weights = F.linear(inputs[0], gate).softmax(-1)
        return (output.unflatten(-1, (len(gate), -1)) * weights.unsqueeze(-1)).flatten(-2)

    return scale
