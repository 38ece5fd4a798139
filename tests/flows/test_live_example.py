"""examples/live.py with a tiny model: corrected while it serves, nothing earlier lost."""

import random
import runpy
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest

from conftest import CHAT_TEMPLATE, TINY
from lcia import Assistant
from lcia.learner import Store
from live_server import server

live = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "examples" / "live.py")))
TRAINING = {"num_train_epochs": 6, "learning_rate": 5e-3, "per_device_train_batch_size": 8}


def save_reader(folder: Path) -> Path:
    """Write a two-layer Llama that reads whole words and says again the word it was told.

    A model of random weights cannot tell words apart well enough for an adapter to learn from
    twenty corrections what they are about.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = sorted({*live.DESKS, *live.DESKS.values(), *live.CODES, *live.CODES.values()})
    words += ["refund", live.REFUNDS]
    asked = f"{live.DESK} {live.CODE}".replace("?", " ?").replace(".", " .").split()
    specials = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|unknown|>"]
    listed = [*specials, *dict.fromkeys([*words, *asked, *"0123456789"])]
    vocabulary = {word: i for i, word in enumerate(listed)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    tokenizer.add_special_tokens(specials)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|end|>",
        unk_token="<|unknown|>",
    )
    fast.chat_template = CHAT_TEMPLATE

    torch.manual_seed(0)
    ends = {"eos_token_id": 0, "pad_token_id": 0, "bos_token_id": 0}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(listed), **ends, **TINY))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    dice = random.Random(0)
    for _ in range(200):
        chats = []
        for _ in range(32):
            word, above = dice.choice(words), dice.choice([live.DESK, live.CODE, ""])
            prompt = f"{above}\n\n{word} {dice.randrange(100, 1000)}"
            turns = [("user", prompt), ("assistant", word)]
            chat = [{"role": role, "content": content} for role, content in turns]
            chats.append(fast.apply_chat_template(chat, tokenize=False))
        batch = fast(chats, return_tensors="pt", padding=True, add_special_tokens=False)
        ids = batch["input_ids"]
        says = (ids == vocabulary["<|assistant|>"]).cumsum(1).bool() & batch[
            "attention_mask"
        ].bool()
        says &= ids != vocabulary["<|assistant|>"]
        loss = model(**batch, labels=ids.masked_fill(~says, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1, "it reads"
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def test_twenty_corrections_are_learned_behind_the_gate_and_nothing_earlier_is_lost(tmp_path):
    root, model = tmp_path / "assistant", save_reader(tmp_path / "reader")
    Assistant.create(root, model=str(model), dtype="float32", training=TRAINING, adapter={"r": 16})
    with server(root, "--learn") as (url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=60)
        found = live.story(client)
        report = client.get("/lcia/releases/3", cast_to=object)
        receipt = client.get(f"/lcia/receipts/{found['wrong']}", cast_to=object)
    assert found["models"] == ("assistant@2", "assistant@3")
    current = Store.open(root).current
    (desks,) = (g.id for g in current.codebook().groups if "desks" in {t.name for t in g.tasks})
    assert (receipt["version"], receipt["group"]) == (2, desks)
    for prompts in ("corrected", "like them"):
        then, now = found[prompts]
        assert then == pytest.approx(0.0)
        assert now >= 0.9
    assert found["old tasks"] == (1.0, 1.0)
    assert current.manifest["task"] == "refunds"
    assert current.manifest["group"] == desks, "no group of its own"
    assert {one["check"] for one in report["checks"]} >= {"earlier_tasks", "new_task"}
