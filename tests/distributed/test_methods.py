"""Methods that change loss, gradients or model, and images: two processes learn what one does."""

import json

import pytest
from PIL import Image as PILImage
from safetensors.torch import load_file
from tests.distributed.launching import PLAIN, run_stream, torchrun
from torch.testing import assert_close

from lcia.learner import Store
from tiny_visual import llava, save

METHODS = ["multitask", "ewc", "lwf", "agem", "olora", "moelora"]

pytestmark = pytest.mark.slow  # three interpreters import torch


def write_stream(folder, model, tasks) -> None:
    entries = []
    for task in tasks:
        for split in ("train", "test"):
            with (folder / f"{task.name}-{split}.jsonl").open("w") as file:
                for sample in getattr(task, split):
                    record = {"prompt": sample.prompt, "completion": sample.answers[0]}
                    file.write(json.dumps(record) + "\n")
        entries.append(
            f"{{name: {task.name}, train: {task.name}-train.jsonl, "
            f"test: {task.name}-test.jsonl, instruction: first_line, max_new_tokens: 1}}"
        )
    # SGD, since Adam makes as much of a rounding error as of a gradient.
    (folder / "stream.yaml").write_text(
        f"model: {model}\ndtype: float32\ntasks: [{', '.join(entries)}]\n"
        f"methods: [{', '.join(METHODS)}]\ngrouping: off\noutput: out\n"
        "training: {num_train_epochs: 1, learning_rate: 0.5, optim: sgd, save_steps: 100,\n"
        "           use_cpu: true}\n"
    )


@pytest.fixture(scope="module")
def learned(tmp_path_factory, tiny_model, colours, shades):
    """The same stream learned by one process with batches of 4, and by two with batches of 2."""
    folder = tmp_path_factory.mktemp("streams")
    write_stream(folder, tiny_model, [colours, shades])
    run_stream(folder, PLAIN, batch_size=4)
    gloo = ("--set", "training.ddp_backend=gloo")
    run_stream(folder, torchrun("-m", "lcia"), *gloo, batch_size=2)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_end_where_one_does(learned, method):
    one, two = (Store.open(learned / f"by{n}/{method}-seed0/assistant").current for n in (4, 2))
    (_, expected), (_, found) = one.adapters["g1"], two.adapters["g1"]
    assert {path.name for path in found.iterdir()} == {path.name for path in expected.iterdir()}
    for path in expected.glob("*.safetensors"):
        assert_close(load_file(found / path.name), load_file(path), rtol=2e-3, atol=2e-5)
    for path in expected.glob("*.jsonl"):
        assert (found / path.name).read_text() == path.read_text()


def write_images(folder) -> None:
    """Sixteen samples, every fourth with an image: most batches of two have none."""
    records = []
    for i in range(16):
        colour = ("red", "blue")[i % 8 // 4]
        image = {}
        if i % 4 == 0:
            PILImage.new("RGB", (40, 40), colour).save(folder / f"{i}.png")
            image = {"image": f"{i}.png"}
        said = [
            {"from": "human", "value": f"What is {i} {colour}?\nSay a word."},
            {"from": "gpt", "value": colour},
        ]
        records.append({"id": str(i), **image, "conversations": said})
    (folder / "data.json").write_text(json.dumps(records))
    entries = [
        f"{{name: {name}, train: data.json, test: data.json, max_test: 2, max_new_tokens: 8, "
        "instruction: last_line}"
        for name in ("first", "second")
    ]
    # SGD, since Adam makes as much of a rounding error as of a gradient.
    (folder / "stream.yaml").write_text(
        f"model: {save(llava, folder / 'model')}\ndtype: float32\ntasks: [{', '.join(entries)}]\n"
        "projector: {learning_rate: 0.5}\nadapter: {r: 2}\noutput: out\n"
        "training: {num_train_epochs: 1, learning_rate: 0.5, optim: sgd, save_steps: 100,\n"
        "           use_cpu: true, gradient_checkpointing: true}\n"
    )


def store_of(output):
    return Store.open(output / "lcia-seed0" / "assistant")


FROZEN = ("--set", "projector=frozen")


@pytest.mark.parametrize(
    ("both", "sharding"),
    [
        ((), ()),
        (FROZEN, ("--set", "training.fsdp=true")),
        (FROZEN, ("--set", "training.deepspeed={zero_optimization: {stage: 2}}")),
    ],
    ids=["DDP", "FSDP2", "ZeRO-2"],
)
def test_with_images_two_processes_end_where_one_does(both, sharding, tmp_path):
    write_images(tmp_path)
    one = store_of(run_stream(tmp_path, PLAIN, *both, batch_size=4))
    gloo = ("--set", "training.ddp_backend=gloo")
    command = torchrun("-m", "lcia")
    two = store_of(run_stream(tmp_path, command, *both, *sharding, *gloo, batch_size=2))
    for version in ("0001", "0002"):
        for name in ("projector.safetensors", "adapter_model.safetensors")[bool(both) :]:
            found, expected = (
                load_file(store.root / "groups" / "g1" / version / name) for store in (two, one)
            )
            assert_close(found, expected, rtol=2e-3, atol=2e-5)
