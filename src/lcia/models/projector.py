"""What turns a tower's image features into word embeddings: part of a group, like its adapter."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lcia.errors import ModelError

FILE = "projector.safetensors"
"""Beside a plain adapter's files, so that these still load in peft and vLLM."""

UNSAVED = Path()
"""Stands for values that no file has: those being trained."""

MODULES = ("multi_modal_projector", "connector", "merger", "deepstack_merger_list")
"""What transformers calls it: LLaVA and its kin, Idefics and SmolVLM, Qwen2-VL to Qwen3-VL."""


class Projector:
    """The projector of a model in memory: trained, saved, and swapped for another group's.

    Args:
        model: a vision-language model of transformers.

    Raises:
        ModelError: the model has no projector under a known name.
    """

    def __init__(self, model: Any) -> None:
        self._parts = {
            name: module
            for name, module in model.named_modules()
            if name.rpartition(".")[2] in MODULES
        }
        if not self._parts:
            raise ModelError(
                f"{type(model).__name__} has no projector that lcia knows ({', '.join(MODULES)}). "
                "Leave it as it is with projector: frozen."
            )
        self._embeddings = model.get_input_embeddings()
        self._own = {name: p.detach().clone() for name, p in self._named()}
        self._source: Path | None = None  # the file whose values these are; None: the model's own
        self._hook: Any = None

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters."""
        return [parameter for _, parameter in self._named()]

    def train(self) -> None:
        """Make the parameters trainable, in float32.

        Every forward pass touches them, so that a batch without images leaves gradients of zero
        and not none: on several processes, one that waits for a gradient would wait for ever.
        """
        for module in self._parts.values():
            module.float().requires_grad_(True)
        self._source = UNSAVED
        if self._hook is None:
            self._hook = self._embeddings.register_forward_hook(self._touch)

    def load(self, folder: Path | None) -> None:
        """Use the projector saved in ``folder``; the model's own if None or if it has none."""
        file = folder / FILE if folder is not None else None
        source = file if file is not None and file.is_file() else None
        if source != self._source:
            self._copy(load_file(source) if source is not None else self._own)
            self._source = UNSAVED if self._hook is not None else source

    def save(self, folder: Path) -> None:
        """Write ``projector.safetensors``."""
        tensors = {name: p.detach().cpu().contiguous() for name, p in self._named()}
        save_file(tensors, folder / FILE)

    def combine(self, parts: Mapping[Path, float], folder: Path) -> None:
        """Write the weighted sum of the projectors that adapters' folders hold."""
        total: dict[str, Tensor] = {}
        for part, weight in parts.items():
            self.load(part)
            for name, parameter in self._named():
                total[name] = total.get(name, 0) + weight * parameter.detach().float().cpu()
        save_file(total, folder / FILE)

    def reset(self) -> None:
        """Put the model's own projector back, not trainable, in the model's dtype."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        for name, parameter in self._named():
            parameter.requires_grad_(False)
            parameter.grad = None
            parameter.data = self._own[name].to(parameter.device, copy=True)
        self._source = None

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for prefix, module in self._parts.items():
            for name, parameter in module.named_parameters():
                yield f"{prefix}.{name}", parameter

    @torch.no_grad()
    def _copy(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self._named():
            parameter.copy_(tensors[name])

    def _touch(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        touched = sum((parameter.sum() for parameter in self.parameters()), torch.zeros(()))
        return output + (0.0 * touched).to(output.dtype)
