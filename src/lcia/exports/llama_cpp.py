"""An assistant for llama.cpp's server: the base model once, and an adapter per group beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcia.errors import StoreError
from lcia.exports.folder import check_plain, write_export
from lcia.exports.gguf import add_tensor, is_rotated, paired, vocabulary, write_file, write_gguf
from lcia.learner import Store, Version
from lcia.models.loading import load_model
from lcia.serving.engine.factors import Factors, read_factors
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
    write_gguf(base.model, tokens, draft / FILE, name=store.root.resolve().name)
    (draft / ADAPTERS).mkdir()
    for group, (key, adapter) in version.adapters.items():
        factors = read_factors(adapter, dtype=torch.float32, device="cpu")
        path = draft / ADAPTERS / f"{key}.gguf"
        write_adapter(factors, base.model, path, name=group)
    keys = [key for key, _ in version.adapters.values()]
    about = {"assistant": store.root.resolve().name, "version": version.number}
    script = draft / "serve.sh"
    script.write_text(_script(about, keys), encoding="utf-8")
    script.chmod(0o755)
    return {"model": store.config.model, "stop": tokens.stops}


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
        rows = up.T
        if is_rotated(f"{module}."):
            queries = ".q_proj" in module
            heads = config.num_attention_heads if queries else config.num_key_value_heads
            rows = paired(rows, heads=heads)
        add_tensor(writer, f"{found}.weight.lora_a", down)
        add_tensor(writer, f"{found}.weight.lora_b", rows)
    write_file(writer)


def _script(about: Mapping[str, Any], keys: list[str]) -> str:
    adapters = ",".join(f"{ADAPTERS}/{key}.gguf" for key in keys)
    options = [
        f"--model {FILE}",
        f"--alias {BASE}",
        f"--lora {adapters}",
        "--lora-init-without-apply",
        f"--jinja --parallel {SLOTS} --port 8000",
    ]
    return (
        "#!/usr/bin/env bash\n"
        f"# Serves version {about['version']} of {json.dumps(about['assistant'])} with llama.cpp.\n"
        "# In front of it: lcia gateway --upstream http://HOST:8000 --store STORE\n"
        "set -euo pipefail\n"
        'cd "$(dirname "$0")"\n'
        "exec llama-server \\\n  " + " \\\n  ".join(options) + ' "$@"\n'
    )
