"""SmolLM2-135M that sees: DINOv2-S/14 in front of it, as a LLaVA, aligned on captions.

Aligning teaches a fresh projector to put images where the language model has its words.
"""

import importlib
import logging
import random
import tempfile
import time
from pathlib import Path
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
from lcia.errors import MissingDependencyError

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


IMAGE = "<image>"
SIDE, PATCH = 56, 14
LAYERS = 8
"""Of the tower's twelve: a linear probe reads shape, colour and digit best off the eighth."""

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make(onnx_file: Path, target: Path) -> None:
    """Put tower, projector and language model together, align the projector and save.

    Args:
        onnx_file: a DINOv2-S/14 with a decoder of saliency maps, which is left out.
        target: the folder to write.

    Raises:
        MissingDependencyError: a package of the extra ``visual`` is not installed.
        DataError: the captioned images cannot be had.
    """
    from lcia.demo.smollm2_dinov2 import align

    with tempfile.TemporaryDirectory() as scratch:
        model, processor = compose(read_tower(onnx_file, folder=Path(scratch)))
    align(model, processor)
    model.bfloat16().save_pretrained(target)
    processor.save_pretrained(target)


def read_tower(onnx_file: Path, *, folder: Path) -> Any:
    """Return the first layers of the DINOv2 in an ONNX file, as transformers' ``Dinov2Model``.

    Linear weights lost their names when they were exported; the operations that use them have not.

    Args:
        onnx_file: exported from transformers, the tower below ``backbone``.
        folder: scratch space; transformers reads weights under their names of then from files.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import Dinov2Config, Dinov2Model

    onnx = _import_onnx()
    graph = onnx.load(onnx_file).graph
    arrays = {t.name: torch.tensor(onnx.numpy_helper.to_array(t)) for t in graph.initializer}
    prefix = "backbone."
    weights = {n.removeprefix(prefix): v for n, v in arrays.items() if n.startswith(prefix)}
    for node in graph.node:
        path = node.name.strip("/").replace("/", ".")
        if path.startswith(prefix) and node.op_type == "MatMul" and node.input[1] in arrays:
            name = path.removeprefix(prefix).removesuffix(".MatMul")
            weights[f"{name}.weight"] = arrays[node.input[1]].T
    # Left over, without a name of their own: the position of the class token, those of patches.
    parts = [v for n, v in arrays.items() if n.startswith("onnx::") and v.ndim == 3]
    places = torch.cat(sorted(parts, key=lambda part: part.shape[1]), dim=1)
    width = places.shape[-1]
    weights |= {
        "embeddings.position_embeddings": places,
        "embeddings.mask_token": torch.zeros(1, width),
    }
    grid = round((places.shape[1] - 1) ** 0.5)
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=LAYERS,
        num_attention_heads=width // 64,
        image_size=grid * PATCH,
        patch_size=PATCH,
        architectures=["Dinov2Model"],
    )
    config.save_pretrained(folder)
    kept = {n: v.contiguous() for n, v in weights.items() if _layer(n) < LAYERS}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return Dinov2Model.from_pretrained(folder, dtype=torch.float32)


def compose(tower: Any, language: str | None = None) -> tuple[Any, Any]:
    """Return a LLaVA of a tower and SmolLM2, with a fresh projector, and its processor.

    Args:
        tower: a ``Dinov2Model``.
        language: folder of the language model; by default SmolLM2-135M, prepared if need be.
    """
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    from lcia.demo.embedded import SMOLLM2

    folder = language or SMOLLM2.prepare()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    text = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-1,
        tie_word_embeddings=text.config.tie_word_embeddings,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.tie_weights()
    return model, _processor(tokenizer)


def _processor(tokenizer: Any) -> Any:
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def _layer(name: str) -> int:
    """Return the number of the layer a weight belongs to; -1 for those of no layer."""
    parts = name.split(".")
    return int(parts[parts.index("layer") + 1]) if "layer" in parts else -1


def _import_onnx() -> Any:
    try:
        onnx = importlib.import_module("onnx")
        importlib.import_module("onnx.numpy_helper")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"model smollm2-dinov2 is read with the package {error.name}, which is not installed. "
            'Install it with: pip install "lcia[visual]"'
        ) from error
    return onnx
