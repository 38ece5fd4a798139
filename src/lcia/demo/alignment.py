"""Teaching a fresh projector to put images where the language model has its words."""

import logging
import random
import time
from typing import Any

from lcia.data.sample import Message, Sample
from lcia.demo.images import (
    COLOURS,
    SHAPES,
    WORDS,
    digits,
    easy_vqa,
    quadrants,
    shapes_image,
    side_by_side,
    stored,
    word_image,
)

logger = logging.getLogger(__name__)

EACH = 480
BATCH_SIZE = 16
LEARNING_RATE = 2e-3
WARM_UP = 0.1
EVERY = 10
SAMPLED = 128
"""Images whose features the projector's first values are fitted to."""


def align(model: Any, processor: Any) -> None:
    """Train the projector alone to describe images, with a cosine schedule, one epoch.

    It starts from inputs of mean 0 and variance 1, and outputs as large as word embeddings.

    Source: the first stage of LLaVA (Liu et al. 2023, arXiv:2304.08485).
    """
    import torch
    from transformers import get_cosine_schedule_with_warmup

    from lcia.models.loading import resolve_dtype
    from lcia.models.visual import VisualFormat

    processor.tokenizer.padding_side = "left"
    chat = VisualFormat(processor, max_prompt_tokens=128, keep_logits=True)
    examples = chat.encode_examples(captions(each=EACH))
    steps = len(examples) // BATCH_SIZE
    model.requires_grad_(False)
    projector = model.model.multi_modal_projector.requires_grad_(True)
    random.Random(0).shuffle(examples)
    standardise(model, chat.collate(examples[:SAMPLED])["pixel_values"])
    optimizer = torch.optim.AdamW(projector.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(WARM_UP * steps), steps)
    low = resolve_dtype("auto") == "bfloat16"
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


def standardise(model: Any, pixel_values: Any) -> None:
    """Fit a fresh projector to the features of images and to the size of word embeddings.

    Raw features hardly differ from their mean, which a fresh layer passes on: the first hundred
    steps would go into finding the differences.
    """
    import torch

    projector = model.model.multi_modal_projector
    features = []
    hook = projector.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    with torch.no_grad():
        model.model.get_image_features(pixel_values)
        hook.remove()
        seen = features[0].flatten(0, -2)
        first, second = projector.linear_1, projector.linear_2
        first.weight.div_(seen.std(dim=0) * first.in_features**0.5 * first.weight.std())
        first.bias.copy_(-(first.weight @ seen.mean(dim=0)))
        made = projector(seen)
        size = model.get_input_embeddings().weight.std() / made.std(dim=0).mean()
        second.weight.mul_(size)
        second.bias.copy_(-size * (made - second.bias).mean(dim=0))


INSTRUCTION = "Describe the picture."
DIGITS = 600
"""The last of them are described here; ``builtin:visual`` asks about the others."""


def captions(*, each: int) -> tuple[Sample, ...]:
    """Return captioned images of five kinds, shuffled.

    Args:
        each: images of a kind: one shape, two shapes, a digit, two digits, a word.

    Raises:
        DataError: easy-VQA cannot be downloaded.
        MissingDependencyError: scikit-learn is not installed.
    """
    draw = random.Random(0)
    written = digits()[-DIGITS:]
    ones = [(item.image, f"a {item.colour} {item.shape}") for item in easy_vqa("train")[-each:]]
    described = [*ones]
    for _ in range(each):
        described.append(_two_shapes(draw))
        image, digit = draw.choice(written)
        described.append((side_by_side([image]), f"the digit {digit}"))
        (left, first), (right, second) = draw.sample(written, 2)
        described.append((side_by_side([left, right]), f"the digits {first} and {second}"))
        word = draw.choice(WORDS)
        described.append((word_image(word, draw=draw), f"the word {word}"))
    draw.shuffle(described)
    return tuple(
        Sample(
            id=str(i),
            messages=(
                Message(role="user", content=INSTRUCTION, images=(stored(image, f"caption-{i}"),)),
            ),
            answers=(caption,),
        )
        for i, (image, caption) in enumerate(described)
    )


def _two_shapes(draw: random.Random) -> tuple[object, str]:
    places = quadrants(draw)
    shapes, said = [], []
    for colour in draw.sample(list(COLOURS), 2):
        (where, box), shape = next(places), draw.choice(SHAPES)
        shapes.append((shape, colour, box))
        said.append(f"a {colour} {shape} at the {where}")
    return shapes_image(shapes, draw=draw), " and ".join(said)
