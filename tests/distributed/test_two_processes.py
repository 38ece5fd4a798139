"""Two gloo processes against one: averages, decisions, checkpoints, states that travel."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.distributed.launching import environment, run, torchrun, write_stream
from torch.testing import assert_close

from conftest import tiny_tokenizer
from lcia.distributed.plan import Blank, Collate, Examples, FilledBatches, same_steps
from lcia.errors import ConfigError
from lcia.files import write_sealed
from lcia.learner import Store
from lcia.models.batches import IGNORED
from lcia.models.chat import ChatFormat

ROOT = Path(__file__).parents[2]
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
needs_deepspeed = pytest.mark.skipif(
    not HAS_DEEPSPEED, reason="deepspeed is not installed (pip install lcia[deepspeed])"
)
ZERO = ["zero0", "zero1", "zero2", "zero3"]


def start(*command):
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.fixture(scope="module")
def parity(tmp_path_factory):
    """What tests.distributed.parity_ranks found, in one start of two processes."""
    out = tmp_path_factory.mktemp("parity") / "parity.json"
    start("-m", "tests.distributed.parity_ranks", out, "ddp", "fsdp2", *(ZERO * HAS_DEEPSPEED))
    return json.loads(out.read_text())


@pytest.mark.parametrize("rule", ["paper", "release", "curvature"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("setting", ["ddp", "fsdp2"])
def test_averages_equal_a_single_process(parity, setting, rule, dtype):
    cell = parity["averages"][setting][f"{rule}/{dtype}"]
    assert cell["difference"] <= {"float32": 1e-4, "float64": 1e-10}[dtype]
    assert cell["same_decisions"]
    assert cell["closed_form"] > 0


@pytest.mark.parametrize("rule", ["paper", "release", "curvature"])
@pytest.mark.parametrize(("setting", "other"), [("ddp", "fsdp2"), ("fsdp2", "ddp")])
def test_states_load_across_world_sizes_and_ways_of_sharding(parity, setting, other, rule):
    for dtype, tolerance in (("float32", 1e-4), ("float64", 1e-10)):
        cell = parity["averages"][setting][f"{rule}/{dtype}"]
        assert cell["resumed_here"] == 0
        assert cell["resumed_on_single"] <= tolerance
        assert cell[f"resumed_on_{other}"] <= tolerance


@needs_deepspeed
@pytest.mark.parametrize("rule", ["paper", "release", "curvature"])
@pytest.mark.parametrize("setting", ZERO)
def test_zero_averages_equal_a_single_process_and_go_on_elsewhere(parity, setting, rule):
    cell = parity["averages"][setting][f"{rule}/float32"]
    assert cell["difference"] <= 1e-4
    assert cell["propagated"] <= 1e-4
    assert cell["same_decisions"]
    assert cell["closed_form"] > 0
    assert cell["resumed_here"] == 0
    assert cell["resumed_on_single"] <= 1e-4
    assert cell["resumed_on_fsdp2"] <= 1e-4


@pytest.mark.parametrize(
    "setting",
    ["ddp", "fsdp2", *[pytest.param(setting, marks=needs_deepspeed) for setting in ZERO]],
)
def test_one_all_reduce_a_step_carries_all_sums_of_sharded_tensors(parity, setting):
    # 5 tensors with 4 sums each; whole tensors have the same sums on every rank.
    assert parity["all_reduces"][setting] == ([] if setting in ("ddp", "zero0") else [20])


@pytest.mark.parametrize(
    ("setting", "dtype"),
    [
        *[(setting, dtype) for setting in ("ddp", "fsdp2") for dtype in ("float32", "float64")],
        *[pytest.param(setting, "float32", marks=needs_deepspeed) for setting in ZERO],
    ],
)
def test_merges_equal_a_single_process_and_go_on_to_the_bit(parity, setting, dtype):
    cell = parity["merges"][f"{setting}/{dtype}"]
    tolerance = {"float32": 1e-5, "float64": 1e-12}[dtype]
    assert cell["trained"] <= tolerance
    assert cell["merged"] <= tolerance
    assert cell["precision"] <= tolerance
    assert cell["moved_by"] > 0.1, "the merge did something"
    assert cell["resumed_to_the_bit"]


@pytest.fixture(scope="module")
def trainers(tmp_path_factory):
    """Folder of what tests.distributed.trainer_ranks wrote, in one start of two processes."""
    folder = tmp_path_factory.mktemp("trainers")
    start("-m", "tests.distributed.trainer_ranks", folder, "ddp")
    return folder


@pytest.mark.parametrize("setting", ["ddp"])  # accelerate drops FSDP and DeepSpeed on a CPU
def test_a_trainer_on_two_processes_resumes_to_the_bit_and_equals_one_process(trainers, setting):
    facts = json.loads((trainers / f"{setting}.json").read_text())
    assert facts["wrapped_in"] == "DistributedDataParallel"
    assert facts["resumed_to_the_bit"]
    assert facts["resumed_steps"] == [5, 6, 7, 8]
    assert [record["step"] for record in facts["records"]] == list(range(1, 9))
    assert facts["logs"][-2]["ema/beta_mean"] < 0.99
    parallel = torch.load(trainers / f"{setting}.pt")
    single = torch.load(trainers / "single.pt")
    for name, values in single["shadow"].items():
        away = (parallel["shadow"][name] - values).abs().max() / values.abs().max()
        assert away <= 1e-4, (name, float(away))


LCIA = ["-m", "lcia", "run", "stream.yaml"]


def launch(processes, sharding=None):
    from lcia.distributed.launch import Launch

    return Launch(
        processes=processes,
        rank=0,
        cpu=True,
        zero=int(sharding[-1]) if sharding == "ZeRO-1" else 0,
        fsdp=sharding == "FSDP2",
        timeout_s=1800,
        backend=None,
    )


@pytest.mark.parametrize(
    ("begun", "now", "expected"), [(2, 1, (4, 2)), (1, 2, (2, 1)), (4, 2, (4, 2)), (2, 2, None)]
)
def test_another_number_of_processes_takes_the_same_samples_a_step(begun, now, expected, tmp_path):
    size = 4
    samples = size * begun
    record = {"schema": 2, "processes": begun, "samples_per_step": samples, "sharding": "DDP"}
    write_sealed(tmp_path / "complete.json", record)
    found = same_steps(tmp_path, {"per_device_train_batch_size": size}, launch(now))
    if expected is None:
        assert found == {}
    else:
        size, accumulated = found.values()
        assert (size, accumulated) == expected
        assert size * accumulated * now == samples


@pytest.mark.parametrize(
    ("samples", "sharding", "said"),
    [(8, "DDP", "no multiple of 3"), (8, "FSDP2", "no multiple"), (6, "ZeRO-1", "keeps a part")],
)
def test_where_steps_cannot_be_the_same_going_on_is_refused(samples, sharding, said, tmp_path):
    record = {"schema": 2, "processes": 2, "samples_per_step": samples, "sharding": sharding}
    write_sealed(tmp_path / "complete.json", record)
    with pytest.raises(ConfigError, match=said) as refused:
        same_steps(tmp_path, {"per_device_train_batch_size": 4}, launch(3, sharding))
    assert "--nproc_per_node 2" in str(refused.value)


def test_blanks_fill_the_last_batches_and_have_no_labels(colours):
    chat = ChatFormat(tiny_tokenizer(), max_prompt_tokens=64)
    examples = Examples([chat.encode_example(sample) for sample in colours.train[:5]])
    from torch.utils.data import BatchSampler, SequentialSampler

    batches = BatchSampler(SequentialSampler(examples), batch_size=2, drop_last=False)
    filled = FilledBatches(batches, blank=len(examples), processes=2)
    assert list(filled) == [[0, 1], [2, 3], [4, 5], [5, 5]]
    assert len(filled) == 4
    batch = Collate(chat.collate)([examples[4], examples[5]])
    assert isinstance(examples[5], Blank)
    assert (batch["labels"][0] != IGNORED).any()
    assert (batch["labels"][1] == IGNORED).all()


@pytest.mark.slow
def test_two_processes_learn_an_uneven_number_of_samples_as_one_does(
    tmp_path, tiny_model, colours, shades
):
    write_stream(tmp_path, tiny_model, [colours, shades], num_train_epochs=2)
    alone = ["--set", "training.per_device_train_batch_size=4", "--set", "output=one"]
    for command in ([sys.executable, *LCIA, *alone], torchrun(*LCIA, "--set", "output=two")):
        done = run(command, tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (Store.open(tmp_path / n / "lcia-seed0" / "assistant") for n in ("one", "two"))
    for version in ("0001", "0002"):
        for path in (one.root / "groups" / "g1" / version).glob("*.safetensors"):
            found = load_file(two.root / path.relative_to(one.root))
            assert_close(found, load_file(path), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_its_steps_on_another_number_of_processes(
    first, second, tmp_path, tiny_model, colours
):
    write_stream(tmp_path, tiny_model, [colours], num_train_epochs=12)
    commands = {1: [sys.executable, *LCIA], 2: torchrun(*LCIA)}
    begun = subprocess.Popen(
        commands[first], cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    pattern = "out/*/assistant/runs/*/checkpoints/checkpoint-8/complete.json"
    until = time.monotonic() + 200
    while not list(tmp_path.glob(pattern)) and time.monotonic() < until and begun.poll() is None:
        time.sleep(0.02)
    os.killpg(begun.pid, signal.SIGKILL)
    begun.wait()
    done = run(commands[second], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    journal = next(tmp_path.glob("out/*/journal.jsonl")).read_text().splitlines()
    steps = [event for event in map(json.loads, journal) if event["event"] == "step"]
    assert len({event["steps"] for event in steps}) == 1
    assert [event["step"] for event in steps] == list(range(1, steps[0]["steps"] + 1))
