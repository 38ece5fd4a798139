"""Tiny vision-language models with their processors, one function a family, and a tiny T5."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from conftest import tiny_tokenizer
from lcia.data import Image, Message, Sample, Task
from lcia.data.images import check_images

LANGUAGE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "bos_token_id": 0,
}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
TEMPLATE = (
    "{{% for m in messages %}}<|{{{{ m['role'] }}}}|>"
    "{{% if m['content'] is string %}}{{{{ m['content'] }}}}{{% else %}}"
    "{{% for part in m['content'] %}}"
    "{{% if part['type'] == 'image' %}}{image}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
    "{{% endfor %}}{{% endif %}}<|end|>\n{{% endfor %}}"
    "{{% if add_generation_prompt %}}<|assistant|>{{% endif %}}"
)


def _llava_parts() -> dict[str, Any]:
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig

    tokenizer = tiny_tokenizer(["<image>"])
    return {
        "tokenizer": tokenizer,
        "vision_config": CLIPVisionConfig(**TOWER, projection_dim=16),
        "text_config": LlamaConfig(vocab_size=len(tokenizer), **LANGUAGE),
        "image_processor": CLIPImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
        ),
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
    }


def llava() -> tuple[Any, Any]:
    """LLaVA-1.5: 4 patches an image."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    parts = _llava_parts()
    config = LlavaConfig(
        vision_config=parts["vision_config"],
        text_config=parts["text_config"],
        image_token_index=parts["image_token_id"],
        image_seq_length=4,
    )
    processor = LlavaProcessor(
        image_processor=parts["image_processor"],
        tokenizer=parts["tokenizer"],
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.format(image="<image>\n"),
    )
    return LlavaForConditionalGeneration(config), processor


def llava_next() -> tuple[Any, Any]:
    """LLaVA-NeXT: an image and its tiles."""
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessorPil,
        LlavaNextProcessor,
    )

    parts = _llava_parts()
    pinpoints = [[28, 56], [56, 28], [56, 56]]
    config = LlavaNextConfig(
        vision_config=parts["vision_config"],
        text_config=parts["text_config"],
        image_token_index=parts["image_token_id"],
        image_grid_pinpoints=pinpoints,
    )
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": 28},
            crop_size={"height": 28, "width": 28},
            image_grid_pinpoints=pinpoints,
        ),
        tokenizer=parts["tokenizer"],
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.format(image="<image>\n"),
    )
    return LlavaNextForConditionalGeneration(config), processor


def qwen2_5_vl() -> tuple[Any, Any]:
    """Qwen2.5-VL: as many tokens as the image is large, three-dimensional positions."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessorPil,
    )

    from lcia.models.loading import without_video

    tokens = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = tiny_tokenizer(tokens)
    ids = dict(zip(tokens, tokenizer.convert_tokens_to_ids(tokens), strict=True))
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = Qwen2_5_VLConfig(
        text_config={"vocab_size": len(tokenizer), **LANGUAGE, "rope_parameters": rope},
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    processor = without_video(Qwen2_5_VLProcessor)(
        image_processor=Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=56 * 84),
        tokenizer=tokenizer,
        chat_template=TEMPLATE.format(image="<|vision_start|><|image_pad|><|vision_end|>"),
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def idefics3() -> tuple[Any, Any]:
    """Idefics3, the family of SmolVLM: images as a list a row."""
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessorPil,
        Idefics3Processor,
    )

    rows = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
    tokenizer = tiny_tokenizer(["<fake_token_around_image>", "<image>", "<global-img>", *rows])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end_of_utterance>"]})
    config = Idefics3Config(
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **LANGUAGE},
        vision_config=TOWER,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
    )
    processor = Idefics3Processor(
        image_processor=Idefics3ImageProcessorPil(
            size={"longest_edge": 56}, max_image_size={"longest_edge": 28}
        ),
        tokenizer=tokenizer,
        image_seq_len=1,
        chat_template=TEMPLATE.format(image="<image>"),
    )
    return Idefics3ForConditionalGeneration(config), processor


def t5() -> tuple[Any, Any]:
    """T5, an encoder and a decoder of text."""
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        eos_token_id=0,
        pad_token_id=0,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config), tokenizer


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": llava,
    "llava_next": llava_next,
    "qwen2_5_vl": qwen2_5_vl,
    "idefics3": idefics3,
}


def save(build: Callable[[], tuple[Any, Any]], folder: Path) -> Path:
    """Write a model with seeded random weights and its processor or tokenizer."""
    import torch

    torch.manual_seed(0)
    model, processor = build()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


SIZES = ((60, 40), (40, 60), (50, 50))


def image_task(
    folder: Path, name: str, *, instruction: str, answers: dict[str, str], train: int = 8
) -> Task:
    """Name the colour of an image; every third sample is a text without an image."""
    colours = list(answers)
    (folder / name).mkdir(parents=True, exist_ok=True)

    def sample(i: int) -> Sample:
        colour = colours[i % len(colours)]
        path = folder / name / f"{i}.png"
        PILImage.new("RGB", SIZES[i % 3], colour).save(path)
        images = () if i % 3 == 2 else (Image(path=str(path)),)
        content = f"{'What is this' if images else f'What is {colour}'}, {i}?\n{instruction}"
        return Sample(
            id=str(i),
            messages=(Message(role="user", content=content, images=images),),
            answers=(answers[colour],),
        )

    task = Task(
        name=name,
        train=tuple(map(sample, range(train))),
        test=tuple(map(sample, range(100, 106))),
        instruction="last_line",
        max_new_tokens=4,
    )
    return check_images([task])[0]
