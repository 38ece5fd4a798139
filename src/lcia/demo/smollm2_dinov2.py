"""SmolLM2-135M that sees: DINOv2-S/14 in front of it, as a LLaVA, aligned on captions."""

import importlib
import logging
import tempfile
from pathlib import Path
from typing import Any

from lcia.errors import MissingDependencyError

logger = logging.getLogger(__name__)

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
    from lcia.demo.alignment import align

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
