"""Two gloo processes against one: averages, decisions, checkpoints, states that travel."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
