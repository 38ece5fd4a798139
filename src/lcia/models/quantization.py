"""Base weights in 4 or 8 bits (QLoRA), through bitsandbytes."""

import importlib.util
from typing import Any

from lcia.errors import ConfigError, MissingDependencyError

CHOICES = ("4bit", "8bit")


def quantization(bits: str, *, dtype: Any) -> Any:
    """Return the ``BitsAndBytesConfig`` of a quantization.

    ``4bit`` is QLoRA's: NF4 with double quantization, computed in ``dtype``. The tower and the
    projector of a vision-language model keep their weights.

    Raises:
        ConfigError: neither ``4bit`` nor ``8bit``.
        MissingDependencyError: bitsandbytes is not installed.

    Source: Dettmers et al. 2023, arXiv:2305.14314.
    """
    if bits not in CHOICES:
        raise ConfigError(f"quantize: {bits!r} is not known. Choices: {', '.join(CHOICES)}.")
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
