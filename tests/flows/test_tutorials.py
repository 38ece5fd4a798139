"""The blocks of the tutorials in order, and examples/live.py while it serves: tiny models."""

import os
import random
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import openai
import pytest

from conftest import CHAT_TEMPLATE, TINY
from lcia import Assistant
from lcia.demo.embedded import PROVENANCE, SMOLLM2
from lcia.files import write_json
from lcia.learner import Store
from serving_server import server

PAGE = (Path(__file__).parents[2] / "docs" / "tutorials.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
SERVE = "lcia serve assistant --learn &\n"
INSTALL = "pip install ./half\n"


@pytest.fixture
def place(tmp_path, tiny_model):
    """An empty folder, where ``smollm2-135m`` is the tiny model and nothing else is prepared."""
    models = tmp_path / "cache" / "models"
    models.mkdir(parents=True)
    shutil.copytree(tiny_model, models / SMOLLM2.name)
    write_json(models / SMOLLM2.name / PROVENANCE, SMOLLM2.provenance())
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_ready(server, url):
    """Wait as long as it takes; a server that ended is waited for no longer."""
    while server.poll() is None:
        try:
            if httpx.get(url).is_success:
                return
        except httpx.ConnectError:
            pass
        time.sleep(0.2)


@pytest.mark.slow
def test_the_tutorials_run_as_they_stand(place, capsys):
    port, site = free_port(), place.parent / "site"
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    paths = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PATH": tools, "PYTHONPATH": paths, "HOME": str(place.parent)}
    env |= {"LCIA_CACHE": str(place.parent / "cache"), "OMP_NUM_THREADS": "1"}
    pip = f"python -m pip install -q --no-build-isolation --no-deps --target {site} ./half\n"
    server, run = None, {"python": 0, "bash": 0}
    try:
        for language, text in BLOCKS:
            text = text.replace("127.0.0.1:8000", f"127.0.0.1:{port}").replace(INSTALL, pip)
            if text == SERVE:
                command = ["lcia", "serve", "assistant", "--learn", "--port", str(port)]
                with (place.parent / "server.log").open("w") as log:
                    server = subprocess.Popen(command, cwd=place, env=env, stdout=log, stderr=log)
                wait_until_ready(server, f"http://127.0.0.1:{port}/readyz")
                continue
            command = ["python", "-c", text] if language == "python" else ["bash", "-ec", text]
            done = subprocess.run(
                command, cwd=place, env=env, capture_output=True, text=True, timeout=600
            )
            log = place.parent / "server.log"
            served = log.read_text() if server is not None else ""
            assert server is None or server.poll() is None, f"the server ended:\n{served}"
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}\n{served}"
            run[language] += 1
    finally:
        if server is not None:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
    with capsys.disabled():
        print(f"\n{run['bash'] + 1} blocks of shell and {run['python']} of Python ran")  # noqa: T201
    assert sum(run.values()) + 1 == len(BLOCKS)


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
