"""Teaching a fresh projector to put pictures where the language model has its words."""

import logging
import random
import time
from typing import Any

from lcia.data.builtin.captions import captions

logger = logging.getLogger(__name__)

EACH = 480
BATCH_SIZE = 16
LEARNING_RATE = 2e-3
WARM_UP = 0.1
EVERY = 10


def align(model: Any, processor: Any) -> None:
    """Train the projector alone to describe pictures, with a cosine schedule, one epoch.

    Source: the first stage of LLaVA (Liu et al. 2023, arXiv:2304.08485).
    """
    import torch
    from transformers import get_cosine_schedule_with_warmup

    from lcia.models.loading import resolve_dtype
    from lcia.models.visual import VisualFormat

    processor.tokenizer.padding_side = "left"
    chat = VisualFormat(processor, max_prompt_tokens=128, keep_logits=True)
    examples = [chat.encode_example(sample) for sample in captions(each=EACH)]
    steps = len(examples) // BATCH_SIZE
    model.requires_grad_(False)
    projector = model.model.multi_modal_projector.requires_grad_(True)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(WARM_UP * steps), steps)
    low = resolve_dtype("auto") == "bfloat16"
    random.Random(0).shuffle(examples)
    started = time.monotonic()
    model.eval()
    for step in range(steps):
        batch = chat.collate(examples[step * BATCH_SIZE : (step + 1) * BATCH_SIZE])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(projector.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if (step + 1) % EVERY == 0:
            left = (time.monotonic() - started) / (step + 1) * (steps - step - 1)
            logger.info(
                "aligning the projector on captions: step %d of %d, loss %.2f, %.0f s left",
                step + 1,
                steps,
                loss.item(),
                left,
            )
    model.requires_grad_(False)
