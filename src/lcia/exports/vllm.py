"""An assistant's groups as adapters that vLLM loads, and the command that serves them."""

import math
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcia.errors import StoreError
from lcia.exports.folder import check_plain, write_export, write_script
from lcia.learner import Store, Version
from lcia.models.answering import NAMED
from lcia.models.loading import is_embedded
from lcia.models.lora import read_config
from lcia.registry import MODELS
from lcia.serving.engine.bank import PREFIX, read_factors
from lcia.serving.live import BASE

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What ``--max-lora-rank`` of vLLM may be."""

TEMPLATE = "chat_template.jinja"
MAX_LORAS = 8
"""Adapters in one batch of vLLM; each takes memory on the GPU whether it is used or not."""


def export_vllm(store: Store, folder: Path) -> dict[str, Any]:
    """Write the current version's adapters and ``serve.sh``; they appear by one rename.

    Each adapter lies in a folder of its group and version, ``g1@0002``: vLLM tells clients where it
    read an adapter, and so the gateway knows which version a server has.

    vLLM gives all of an adapter's modules one rank and one scaling: where a module differs, its
    factors are padded with zeros and hold the scaling, which changes no answer.

    Args:
        store: the assistant.
        folder: new or empty.

    Returns:
        What ``lcia.json`` says: model, version, and the rank of every group.

    Raises:
        StoreError: ``folder`` is not empty, nothing is learned, or vLLM cannot serve a group.
    """
    return write_export(store, folder, lambda version, draft: _write(store, version, draft))


def _write(store: Store, version: Version, draft: Path) -> dict[str, Any]:
    for group, (_, adapter) in version.adapters.items():
        check_plain(group, adapter, reader="vLLM")
    ranks = {
        group: write_adapter(adapter, draft / "adapters" / key)
        for group, (key, adapter) in version.adapters.items()
    }
    model = store.config.model
    if is_embedded(model):
        shutil.copytree(MODELS.get(model).prepare(), draft / "model")
    elif Path(model).expanduser().is_dir():
        model = str(Path(model).expanduser().absolute())
    about = {"assistant": store.root.resolve().name, "version": version.number}
    about |= {"adapters": {group: key for group, (key, _) in version.adapters.items()}}
    about |= {"model": model, "ranks": ranks, "max_lora_rank": _served_rank(ranks)}
    named = store.config.generation.chat_template
    if named is not None:
        (draft / TEMPLATE).write_text(NAMED[named], encoding="utf-8")
    start = "model" if is_embedded(model) else model
    write_script(
        draft,
        about,
        tool="vLLM",
        command=f'MODEL=${{MODEL:-{shlex.quote(start)}}}\nexec vllm serve "$MODEL"',
        options=_options(about, template=named is not None),
    )
    return about


def write_adapter(source: Path, target: Path) -> int:
    """Write one adapter as vLLM takes it, into a new folder; return its rank."""
    import torch
    from safetensors.torch import save_file

    config = read_config(source)
    factors = read_factors(source, dtype=torch.float32, device="cpu")
    ranks = {len(down) for down, _ in factors.modules.values()}
    target.mkdir(parents=True)
    if ranks == {config.r} and not config.alpha_pattern:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(source / name, target / name)
        return int(config.r)
    tensors = {}
    for name, (down, up) in factors.modules.items():
        padding = (0, 0, 0, factors.rank - len(down))
        pad = torch.nn.functional.pad
        tensors[f"{PREFIX}{name}.lora_A.weight"] = pad(down, padding).contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = pad(up, padding).T.contiguous()
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    # One rank, and alpha equal to it: the scaling is 1, because the factors hold it already.
    config.r = config.lora_alpha = factors.rank
    config.rank_pattern, config.alpha_pattern, config.use_rslora = {}, {}, False
    config.save_pretrained(str(target))
    return factors.rank


def _served_rank(ranks: Mapping[str, int]) -> int:
    group = max(ranks, key=lambda name: ranks[name])
    served = next((rank for rank in RANKS if rank >= ranks[group]), None)
    if served is None:
        raise StoreError(f"group {group}: has rank {ranks[group]}; vLLM takes up to {RANKS[-1]}.")
    return served


def _options(about: Mapping[str, Any], *, template: bool) -> list[str]:
    groups = list(about["ranks"])
    # One slot stays free: vLLM's kernels for the CPU give rows without an adapter the last one's.
    slots = min(MAX_LORAS, len(groups)) + 1
    return [
        f"--served-model-name {BASE}",
        "--enable-lora",
        f"--max-loras {slots}",
        f"--max-cpu-loras {max(slots, 2 ** math.ceil(math.log2(len(groups))))}",
        f"--max-lora-rank {about['max_lora_rank']}",
        f"--lora-modules {' '.join(f'{g}=adapters/{key}' for g, key in about['adapters'].items())}",
        *([f"--chat-template {TEMPLATE}"] if template else []),
    ]
