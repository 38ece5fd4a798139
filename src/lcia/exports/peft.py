"""What peft and transformers read: adapters as stored, or a model with each merged in."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lcia.errors import StoreError
from lcia.exports.folder import check_plain, write_card, write_export
from lcia.learner import Store, Version
from lcia.models.answering import NAMED
from lcia.models.loading import BaseModel, load_model
from lcia.models.lora import load_adapter, read_config

FILES = ("adapter_config.json", "adapter_model.safetensors")


def export_peft(store: Store, folder: Path) -> dict[str, Any]:
    """Write every group's adapter as it is stored, byte for byte, with a model card.

    What lcia keeps beside an adapter, such as samples it remembers, stays in the store.

    Args:
        store: the assistant.
        folder: new or empty; gets one folder per group, named like it.

    Returns:
        What ``lcia.json`` says.

    Raises:
        StoreError: ``folder`` is not empty, nothing is learned, or peft cannot read a group.
    """

    def write(version: Version, draft: Path) -> dict[str, Any]:
        for group, (_, adapter) in version.adapters.items():
            check_plain(group, adapter, reader="peft")
            (draft / group).mkdir()
            for file in FILES:
                shutil.copy(adapter / file, draft / group / file)
            write_card(store, version, draft / group, groups=[group], relation="adapter")
        return {"model": store.config.model}

    return write_export(store, folder, write)


TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 3e-3}
"""Largest difference of a logit to the adapter's, as a share of the largest logit, by the dtype to
which merged weights are rounded. Both are computed in float32: bfloat16 alone differs by more."""

PROBE = 32
"""Tokens of the text on which both are compared."""

Told = Callable[[str, int, int], None]
"""Is told of every group: its name, how many are done, how many there are."""


def export_merged(store: Store, folder: Path, *, told: Told | None = None) -> dict[str, Any]:
    """Write one model per group that answers without peft, with a model card.

    Weights are merged in float32 and rounded once, to the base model's dtype.

    Args:
        store: the assistant.
        folder: new or empty; gets one folder per group, named like it.
        told: is told how far it is.

    Returns:
        What ``lcia.json`` says; ``difference`` is group to the largest difference of a logit, as a
        share of the largest.

    Raises:
        StoreError: ``folder`` is not empty, nothing is learned, a group cannot be merged, or a
            merged model differs by more than ``TOLERANCE``.
    """

    def write(version: Version, draft: Path) -> dict[str, Any]:
        import torch

        difference = {}
        for group, base, merged, share in merged_groups(store, version, told=told):
            difference[group] = share
            with torch.inference_mode():
                merged.save_pretrained(draft / group)
            _write_tokenizer(store, base, draft / group)
            write_card(store, version, draft / group, groups=[group], relation="merge")
        return {"model": store.config.model, "difference": difference, "tolerance": TOLERANCE}

    return write_export(store, folder, write, relation="merge")


def merged_groups(
    store: Store,
    version: Version,
    *,
    told: Told | None = None,
    check: Callable[[BaseModel], object] = lambda base: None,
) -> Iterator[tuple[str, BaseModel, Any, float]]:
    """Yield every group with its base model, the merged one and how much its logits differ.

    Args:
        store: the assistant.
        version: what is exported.
        told: is told how far it is.
        check: refuses a base model before anything is merged into it.

    Raises:
        StoreError: a group cannot be merged, or differs by more than ``TOLERANCE``.
    """
    for group, (_, adapter) in version.adapters.items():
        check_plain(group, adapter, reader="a merged model")
    for done, (group, (_, adapter)) in enumerate(version.adapters.items()):
        if told is not None:
            told(group, done, len(version.adapters))
        # Anew for each: to take a merged adapter off again would round a second time.
        base = load_model(store.config.model, dtype=store.config.dtype)
        check(base)
        yield group, base, *_merge(base, adapter, group=group)


def _merge(base: BaseModel, adapter: Path, *, group: str) -> tuple[Any, float]:
    """Return the base with an adapter merged in, and how much its logits differ."""
    dtype = base.model.dtype
    _check_untied(base.model, adapter, group=group)
    peft: Any = load_adapter(base.model, adapter).eval()
    expected = _logits(peft.float(), base)
    merged = peft.merge_and_unload().to(dtype)
    found = _logits(merged.float(), base)
    share = float((found - expected).abs().max() / expected.abs().max())
    allowed = TOLERANCE[str(dtype).removeprefix("torch.")]
    if not share <= allowed:
        raise StoreError(
            f"group {group}: merged, its logits differ by {share:.1e} of the largest; expected at "
            f"most {allowed:.0e}. Export it with --format peft."
        )
    return merged.to(dtype), share  # exact: these values were rounded before


def _logits(model: Any, base: BaseModel) -> Any:
    import torch

    vocabulary = base.facts.vocabulary or len(base.tokenizer)
    ids = torch.arange(PROBE, device=base.model.device)[None] * 977 % vocabulary
    inputs = {"input_ids": ids}
    if base.facts.encoder_decoder:
        inputs["decoder_input_ids"] = ids
    with torch.inference_mode():
        return model(**inputs).logits.float()


def _check_untied(model: Any, adapter: Path, *, group: str) -> None:
    """Refuse an adapter on an output layer that is the embedding, too: merging changes both."""
    from peft.tuners.tuners_utils import check_target_module_exists

    config = read_config(adapter)
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    if output is None or output.weight is not embedding.weight:
        return
    name = next(name for name, module in model.named_modules() if module is output)
    if config.target_modules != "all-linear" and check_target_module_exists(config, name):
        raise StoreError(
            f"group {group}: adapts {name}, whose weights are the embedding's, too: merged, both "
            "would change. Export it with --format peft."
        )


def _write_tokenizer(store: Store, base: BaseModel, target: Path) -> None:
    holder = base.processor or base.tokenizer
    if named := store.config.generation.chat_template:
        holder.chat_template = NAMED[named]
    holder.save_pretrained(target)
