"""Two gloo processes against one: averages, decisions, checkpoints, states that travel."""

import importlib.util
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
needs_deepspeed = pytest.mark.skipif(
    not HAS_DEEPSPEED, reason="deepspeed is not installed (pip install lcia[deepspeed])"
)
ZERO = ["zero0", "zero1", "zero2", "zero3"]


def start(*command):
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.fixture(scope="module")
def parity(tmp_path_factory):
    """Return a function from a setting to its figures; one start of processes for each family."""
    folder, tables = tmp_path_factory.mktemp("parity"), {}

    def get(setting):
        family = ZERO if setting in ZERO else ["ddp", "fsdp2"]
        if setting not in tables:
            out = folder / f"{family[0]}.json"
            start("-m", "benchmarks.speed.parity", *family, "--out", out)
            tables.update(json.loads(out.read_text()))
        return tables[setting]

    return get


@pytest.mark.parametrize("rule", ["paper", "release", "curvature"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("setting", ["ddp", "fsdp2"])
def test_averages_equal_a_single_process(parity, setting, rule, dtype):
    cell = parity(setting)[f"{rule}/{dtype}"]
    assert cell["difference"] <= {"float32": 1e-4, "float64": 1e-10}[dtype]
    assert cell["same_decisions"]
    assert cell["closed_form"] > 0


@pytest.mark.parametrize("rule", ["paper", "release", "curvature"])
@pytest.mark.parametrize(("setting", "other"), [("ddp", "fsdp2"), ("fsdp2", "ddp")])
def test_states_load_across_world_sizes_and_ways_of_sharding(parity, setting, other, rule):
    for dtype, tolerance in (("float32", 1e-4), ("float64", 1e-10)):
        cell = parity(setting)[f"{rule}/{dtype}"]
        assert cell["resumed_here"] == 0
        assert cell["resumed_on_single"] <= tolerance
        assert cell[f"resumed_on_{other}"] <= tolerance


@needs_deepspeed
@pytest.mark.parametrize("rule", ["paper", "release", "curvature"])
@pytest.mark.parametrize("setting", ZERO)
def test_zero_averages_equal_a_single_process(parity, setting, rule):
    cell = parity(setting)[f"{rule}/float32"]
    assert cell["difference"] <= 1e-4
    assert cell["published"] <= 1e-4
    assert cell["same_decisions"]
    assert cell["closed_form"] > 0


@pytest.mark.parametrize(
    "setting",
    [
        "fsdp2",
        pytest.param("ddp", marks=pytest.mark.slow),
        pytest.param("zero2", marks=[needs_deepspeed, pytest.mark.slow]),
    ],
)
def test_a_trainer_on_two_processes_resumes_to_the_bit_and_equals_one_process(setting, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start(HERE / "trainer_ranks.py", port, setting, tmp_path)
    facts = json.loads((tmp_path / f"{setting}.json").read_text())
    assert facts["resumed_to_the_bit"]
    assert [record["step"] for record in facts["records"]] == list(range(1, 9))
    assert facts["logs"][-2]["ema/beta_mean"] < 0.99
    parallel = torch.load(tmp_path / f"{setting}.pt")
    single = torch.load(tmp_path / "single.pt")
    for name, values in single["shadow"].items():
        away = (parallel["shadow"][name] - values).abs().max() / values.abs().max()
        assert away <= 1e-4, (name, float(away))
