"""Tiny models, tasks and streams, built in memory."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import pytest
from hypothesis import settings

from lcia.data import Message, Sample, Task

# A slow machine is no failure: nothing here is a timed test.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def tiny_tokenizer(more_specials=()):
    """A byte-level tokenizer whose pad token equals its end token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>", *more_specials]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(specials + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def save_tiny_model(folder: Path, **sizes: int) -> Path:
    """Write a two-layer Llama with a byte-level tokenizer, and return its folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            eos_token_id=0,
            pad_token_id=0,
            bos_token_id=0,
            **{**TINY, **sizes},
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A two-layer Llama with a byte-level tokenizer whose pad token equals its end token."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def make_task(
    name: str, instruction: str, answers: dict[str, str], *, train: int = 16, test: int = 4
) -> Task:
    """A task that maps words to answers, one instruction line before each."""
    words = list(answers)

    def sample(i: int) -> Sample:
        word = words[i % len(words)]
        prompt = f"{instruction}\n\n{word} {i}"
        return Sample(
            id=str(i),
            messages=(Message(role="user", content=prompt),),
            answers=(answers[word],),
            instruction=instruction,
        )

    return Task(
        name=name,
        train=tuple(sample(i) for i in range(train)),
        test=tuple(sample(1000 + i) for i in range(test)),
        instruction="first_line",
        max_new_tokens=4,
    )


@pytest.fixture(scope="session")
def colours() -> Task:
    """Name a colour's first letter."""
    return make_task("colours", "Say the letter of the colour.", {"red": "r", "green": "g"})


@pytest.fixture(scope="session")
def shades() -> Task:
    """The same instruction as ``colours``, other answers."""
    return make_task("shades", "Say the letter of the colour.", {"blue": "b", "white": "w"})


@pytest.fixture(scope="session")
def numbers() -> Task:
    """Another instruction than ``colours``."""
    return make_task("numbers", "Write this number as a digit.", {"one": "1", "two": "2"})
