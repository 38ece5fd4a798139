"""An assistant for llama.cpp's server: the base model once, and an adapter per group beside it."""

from pathlib import Path
from typing import Any

from lcia.errors import StoreError
from lcia.exports.folder import check_plain, write_export, write_script
from lcia.exports.gguf import add_tensor, reordered, vocabulary, write_file, write_gguf
from lcia.learner import Store, Version
from lcia.models.loading import load_model
from lcia.serving.engine.bank import Factors, read_factors
from lcia.serving.live import BASE

FILE, ADAPTERS = "base.gguf", "adapters"

SLOTS = 4
"""Requests that llama.cpp answers at once; those of different groups take turns."""


def export_llama_cpp(store: Store, folder: Path) -> dict[str, Any]:
    """Write the base model and the current version's adapters as GGUF files, and ``serve.sh``.

    Each adapter is a file of its group and version, ``g1@0002.gguf``: llama.cpp tells clients what
    it read an adapter from, and so the gateway knows which version a server has. A server needs the
    weights of the base model once, whatever the number of groups.

    Args:
        store: the assistant.
        folder: new or empty.

    Returns:
        What ``lcia.json`` says; ``stop`` is what ends an answer.

    Raises:
        StoreError: ``folder`` is not empty, nothing is learned, the base model is one that cannot
            be written so, or llama.cpp cannot apply a group's adapter.
    """
    return write_export(store, folder, lambda version, draft: _write(store, version, draft))


def _write(store: Store, version: Version, draft: Path) -> dict[str, Any]:
    import torch

    for group, (_, adapter) in version.adapters.items():
        check_plain(group, adapter, reader="llama.cpp")
    base = load_model(store.config.model, dtype=store.config.dtype)
    tokens = vocabulary(store, base, ollama=False)
    about: dict[str, Any] = {"assistant": store.root.resolve().name, "version": version.number}
    (draft / ADAPTERS).mkdir()
    for group, (key, adapter) in version.adapters.items():
        factors = read_factors(adapter, dtype=torch.float32, device="cpu")
        path = draft / ADAPTERS / f"{key}.gguf"
        write_adapter(factors, base.model, path, name=group)
    write_gguf(base.model, tokens, draft / FILE, name=about["assistant"])  # nothing is refused now
    files = ",".join(f"{ADAPTERS}/{key}.gguf" for key, _ in version.adapters.values())
    options = [
        f"--model {FILE}",
        f"--alias {BASE}",
        f"--lora {files}",
        "--lora-init-without-apply",
        f"--jinja --parallel {SLOTS} --port 8000",
    ]
    write_script(draft, about, tool="llama.cpp", command="exec llama-server", options=options)
    return {**about, "model": store.config.model, "stop": tokens.stops}


def write_adapter(factors: Factors, model: Any, path: Path, *, name: str) -> None:
    """Write one adapter of a Llama model; its factors hold its scaling, so no alpha is said.

    Args:
        factors: of the adapter.
        model: the base model.
        path: of the file.
        name: of the adapter.

    Raises:
        StoreError: it changes a module that llama.cpp has no place for.
    """
    import gguf

    config = model.config
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_name(name)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for module, (down, up) in factors.modules.items():
        found = names.get_name(module)
        if found is None or (found == "output" and tied):
            raise StoreError(
                f"group {name}: adapts {module}, for which this model has no place in llama.cpp. "
                "Export it with --format peft."
            )
        add_tensor(writer, f"{found}.weight.lora_a", down)
        add_tensor(writer, f"{found}.weight.lora_b", reordered(config, module, up.T))
    write_file(writer)
