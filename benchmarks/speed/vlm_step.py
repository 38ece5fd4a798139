"""A training step of LLaVA-1.5-7B with and without dynamic EMA: time, memory, overhead.

    python -m benchmarks.speed.vlm_step            # one GPU of 80 GB; kept as vlm_step
    python -m benchmarks.speed.vlm_step --tiny     # the same code in seconds, anywhere: no result

Random weights in the shape of LLaVA-1.5-7B, bfloat16, LoRA r=128 on the language model, the
projector trained, gradient checkpointing, AdamW, a batch of 16 images with 64 tokens of text.
Steps with and without the average take turns in one process; medians.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from benchmarks.measured import MEASURED, keep
from lcia.ema import DynamicEMA
from lcia.models.host import adapt_language_only
from lcia.models.visual import Projector

BATCH, TEXT, KEPT = 16, 64, 16
STEPS, WARM_UP = 10, 3


def configuration(*, tiny: bool) -> LlavaConfig:
    """Return LLaVA-1.5-7B's shape, or one of a few thousand parameters."""
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    text = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    heads, side, vocabulary = (16, 32), 336, 32064
    if tiny:
        vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3}
        text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        heads, side, vocabulary = (2, 4), 28, 320
    tower = CLIPVisionConfig(
        **vision, num_attention_heads=heads[0], image_size=side, patch_size=14, projection_dim=768
    )
    language = LlamaConfig(**text, num_attention_heads=heads[1], vocab_size=vocabulary)
    return LlavaConfig(
        vision_config=tower,
        text_config=language,
        image_token_index=vocabulary - 1,
        image_seq_length=(side // 14) ** 2,
    )


def model_to_train(config: LlavaConfig, *, device: str, rank: int) -> Any:
    """Return the model with its adapter and its projector ready to train."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlavaForConditionalGeneration(config)
    torch.set_default_dtype(default)
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    adapt_language_only(lora, model)
    adapted = get_peft_model(model, lora)
    Projector(model).train()
    adapted.gradient_checkpointing_enable({"use_reentrant": False})
    return adapted.train()


def batch_of(config: LlavaConfig, device: str) -> dict[str, Any]:
    """Return images and text of random numbers."""
    side = config.vision_config.image_size
    image = torch.full((BATCH, config.image_seq_length), config.image_token_index)
    text = torch.randint(3, config.image_token_index, (BATCH, TEXT))
    ids = torch.cat([image, text], dim=1).to(device)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(BATCH, 3, side, side, device=device, dtype=torch.bfloat16),
        "labels": ids[:, -KEPT:].clone(),
        "logits_to_keep": KEPT,
    }


def seconds(work: Callable[[], object], device: str) -> float:
    """Return how long ``work`` takes, the device's part included."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def measure(*, device: str, tiny: bool) -> dict[str, Any]:
    """Take turns between plain steps and steps with the average."""
    torch.manual_seed(0)
    config = configuration(tiny=tiny)
    model = model_to_train(config, device=device, rank=4 if tiny else 128)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4)
    batch = batch_of(config, device)

    def step(ema: DynamicEMA | None) -> None:
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        if ema is not None:
            ema.update()
        optimizer.zero_grad()

    for _ in range(WARM_UP):
        step(None)
    without_bytes = _peak(lambda: step(None), device)
    ema = DynamicEMA(model.named_parameters(), rule="release")
    for _ in range(WARM_UP):
        step(ema)
    with_bytes = _peak(lambda: step(ema), device)
    pairs = [
        (seconds(lambda: step(None), device), seconds(lambda: step(ema), device))
        for _ in range(STEPS)
    ]
    plain, averaged = (statistics.median(times) for times in zip(*pairs, strict=True))
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "trained_parameters": sum(p.numel() for p in trained),
        "step_ms": round(1000 * plain, 2),
        "step_with_ema_ms": round(1000 * averaged, 2),
        "overhead_percent": round(100 * statistics.median(b / a - 1 for a, b in pairs), 2),
        "peak_gib": _gib(without_bytes),
        "peak_with_ema_gib": _gib(with_bytes),
    }


def _peak(work: Callable[[], object], device: str) -> int | None:
    if device != "cuda":
        work()
        return None
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def _gib(count: int | None) -> float | None:
    return None if count is None else round(count / 2**30, 2)


def main() -> None:
    """Measure, print and write the result; without a GPU, say so."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a few thousand parameters, no result")
    parser.add_argument("--results", type=Path, default=MEASURED)
    options = parser.parse_args()
    has_gpu = torch.cuda.is_available()
    if not has_gpu and not options.tiny:
        sys.exit(
            "vlm_step: found no CUDA device; expected one with 80 GB. Run this script on such a "
            "machine, or with --tiny to see that it works."
        )
    result = measure(device="cuda" if has_gpu else "cpu", tiny=options.tiny)
    print(json.dumps(result, indent=2))
    if not options.tiny:
        keep("vlm_step", result, options.results)


if __name__ == "__main__":
    main()
