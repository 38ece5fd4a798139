"""Token-level gates over the parts of a stacked LoRA: a mixture of LoRA experts.

On a module with a LoRA of rank n r, W a matrix of shape (n, inputs), and x a token's input, the
experts' outputs B_i A_i x are weighted by softmax(W x)_i: the hook scales the n blocks of A x, so
peft's own forward, batches of mixed adapters included, does the rest.
"""

from collections.abc import Callable, Iterator
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
    for _, layer in _layers(model, adapter):
        inputs = layer.lora_A[adapter].in_features
        _attach(layer, torch.zeros(experts, inputs), adapter=adapter, trainable=True)


def load_gates(model: Any, folder: Path, *, adapter: str, trainable: bool) -> None:
    """Put on an adapter the gates that its folder holds, if any."""
    if (folder / GATES).is_file():
        stored = load_file(folder / GATES)
        for name, layer in _layers(model, adapter):
            _attach(layer, stored[name], adapter=adapter, trainable=trainable)


def trained_gates(model: Any) -> dict[str, nn.Parameter]:
    """Return the gates that are being trained, by module name."""
    return {n.removesuffix(".gate"): p for n, p in model.named_parameters() if n.endswith(".gate")}


def save_gates(model: Any, folder: Path) -> None:
    """Write the gates that are being trained to an adapter's folder, if there are any."""
    if gates := trained_gates(model):
        save_file({name: gate.detach().cpu() for name, gate in gates.items()}, folder / GATES)


def restore_gates(model: Any, folder: Path) -> None:
    """Set the gates that are being trained to what ``save_gates`` wrote."""
    stored = load_file(folder / GATES)
    with torch.no_grad():
        for name, gate in trained_gates(model).items():
            gate.copy_(stored[name])


def _layers(model: Any, adapter: str) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if adapter in getattr(module, "lora_A", ()):
            yield name, module


def _attach(layer: Any, values: Tensor, *, adapter: str, trainable: bool) -> None:
    down = layer.lora_A[adapter]
    gate = nn.Parameter(values.to(down.weight), requires_grad=trainable)
    if trainable:
        layer.gate = gate  # named without "lora_", so that peft leaves it out of its own file
    down.register_forward_hook(_scale_by(gate))


def _scale_by(gate: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def scale(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        weights = F.linear(inputs[0], gate).softmax(-1)
        return (output.unflatten(-1, (len(gate), -1)) * weights.unsqueeze(-1)).flatten(-2)

    return scale
