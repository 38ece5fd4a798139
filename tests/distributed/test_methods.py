"""Methods that add to the loss, the gradients or the model: two processes learn what one does."""

import json

import pytest
from safetensors.torch import load_file
from tests.distributed.launching import PLAIN, run_stream, torchrun
from torch.testing import assert_close

from lcia.learner import Store

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
