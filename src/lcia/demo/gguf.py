"""Quantised GGUF files to bfloat16 safetensors."""

import logging
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def dequantise(gguf: Path, target: Path) -> None:
    """Write a language model and its tokenizer, from a GGUF file, as transformers keeps them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.info("dequantising %s", gguf.name)
    source = {"gguf_file": gguf.name}
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.bfloat16, **source)
    # transformers refuses to save a model it loaded from GGUF while these are set.
    for holder in (model, model.config):
        if hasattr(holder, "quantization_config"):
            del holder.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(target)
