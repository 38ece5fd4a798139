"""One test a model family: learn two tasks, save, reload in a new process, same answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import make_task
from lcia.config import AssistantConfig
from lcia.learner import ContinualLearner, Store
from lcia.models.visual import PROJECTOR
from tiny_visual import FAMILIES, image_task, save, t5

LEARNED = (*FAMILIES, "t5")
TRAINING = {"num_train_epochs": 3, "learning_rate": 1e-2, "per_device_train_batch_size": 4}
ANSWER_AGAIN = """
import json, sys
from lcia.learner import ContinualLearner, Store
found = {}
for root in sys.argv[1:]:
    predictions = ContinualLearner(Store.open(root)).evaluate()
    found[root] = [[p.task, p.sample, p.adapter, p.prediction] for p in predictions]
print(json.dumps(found))
"""


def learn(family: str, folder: Path) -> Store:
    model = save(FAMILIES.get(family, t5), folder / "model")
    config = AssistantConfig(
        model=str(model),
        dtype="float32",
        training=TRAINING,
        projector={"learning_rate": 1e-2},
        adapter={"r": 4},
    )
    say, name = "Say the letter of the colour.", "Name the colour in German, please."
    if family == "t5":
        tasks = [
            make_task("letters", say, {"red": "r", "blue": "b"}),
            make_task("german", name, {"red": "rot", "blue": "blau"}),
        ]
    else:
        tasks = [
            image_task(folder, "letters", instruction=say, answers={"red": "r", "blue": "b"}),
            image_task(folder, "german", instruction=name, answers={"red": "rot", "lime": "hell"}),
        ]
    learner = ContinualLearner.create(folder / "store", config)
    learner.run(tasks)
    return learner.store


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[str, Store]:
    return {family: learn(family, tmp_path_factory.mktemp(family)) for family in LEARNED}


@pytest.fixture(scope="module")
def reloaded(stores) -> dict[str, list]:
    """What a new process answers with every family's store."""
    done = subprocess.run(
        [sys.executable, "-c", ANSWER_AGAIN, *(str(store.root) for store in stores.values())],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("family", LEARNED)
def test_a_new_process_gives_the_same_answers(family, stores, reloaded):
    store = stores[family]
    known = store.current.predictions()
    assert {p.adapter for p in known} == {"g1@0001", "g2@0002"}
    assert reloaded[str(store.root)] == [[p.task, p.sample, p.adapter, p.prediction] for p in known]


@pytest.mark.parametrize("family", LEARNED)
def test_stock_peft_loads_the_adapter_of_the_language_model(family, stores):
    from peft import PeftModel

    from lcia.models import load_model

    store = stores[family]
    folder = store.current.adapters["g2"][1]
    base = load_model(store.config.model, dtype="float32").model
    model = PeftModel.from_pretrained(base, folder)
    stored = load_file(folder / "adapter_model.safetensors")
    loaded = {n: p for n, p in model.named_parameters() if ".lora_" in n}
    assert len(stored) == len(loaded) > 0
    for name, value in stored.items():
        head, _, tail = name.rpartition(".")
        assert torch.equal(loaded[f"{head}.default.{tail}"], value)
    assert not [name for name in stored if "vision" in name or "visual" in name]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_group_has_its_projector_beside_the_adapter(family, stores):
    folders = [folder for _, folder in stores[family].current.adapters.values()]
    first, second = (load_file(folder / PROJECTOR) for folder in folders)
    assert first.keys() == second.keys()
    assert any(not torch.equal(first[name], second[name]) for name in first)
