"""Every way of sharding through the product: in force, as one process learns, and to the bit.

Each setting learns two tasks of one group on two processes, twice: through, and killed in the
second task and started again.
"""

import json
import sys
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.distributed.launching import HERE, run, torchrun, write_data, write_stream
from torch import nn
from torch.testing import assert_close

from lcia.config import AssistantConfig
from lcia.distributed.launch import Launch, launch_of
from lcia.distributed.plan import check_wrapped
from lcia.errors import ConfigError
from lcia.learner import Store
from lcia.learner.training import check_spread

RANKS = HERE / "sharded_ranks.py"
SETTINGS = {
    "DDP": {},
    "FSDP2": {"fsdp": True, "gradient_checkpointing": True},
    **{f"ZeRO-{i}": {"deepspeed": {"zero_optimization": {"stage": i}}} for i in (1, 2)},
    # Small tensors, all of a tiny model's, would stay whole.
    "ZeRO-3": {
        "deepspeed": {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
    },
}
SHARED = {"num_train_epochs": 2, "adam_epsilon": 1e-3}
"""An epsilon that lets Adam make less of a rounding error than of a gradient."""
TABLE = Path(__file__).parents[2] / "docs" / "distributed.md"
KILL_AT = 5
"""A step of the second task behind its checkpoint of step 4."""


def store(folder, output) -> Store:
    return Store.open(folder / output / "lcia-seed0" / "assistant")


def tensors(learned: Store) -> dict:
    files = sorted((learned.root / "groups" / "g1").rglob("*.safetensors"))
    return {str(path.relative_to(learned.root)): load_file(path) for path in files}


def answers(learned: Store) -> list:
    return [[p.to_json() for p in version.predictions()] for version in learned.history()]


@pytest.fixture(scope="module")
def one(tmp_path_factory, tiny_model, colours, shades) -> Store:
    folder = tmp_path_factory.mktemp("one")
    write_stream(folder, tiny_model, [colours, shades], per_device_train_batch_size=4, **SHARED)
    done = run([sys.executable, "-m", "lcia", "run", "stream.yaml"], folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return store(folder, "out")


@pytest.mark.parametrize(
    "setting",
    [
        "FSDP2",
        *(pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS if name != "FSDP2"),
    ],
)
def test_what_is_asked_for_is_in_force_right_and_goes_on_to_the_bit(
    setting, one, tmp_path, tiny_model, colours, shades
):
    # Batches of one, two accumulated: gradients are kept between them.
    training = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    write_stream(tmp_path, tiny_model, [colours, shades], **SHARED, **training, **SETTINGS[setting])
    killed = run(torchrun(RANKS, "facts.json", KILL_AT, "stream.yaml"), tmp_path)
    assert killed.returncode != 0
    assert "ended without a word" in killed.stderr
    assert_in_force(setting, json.loads((tmp_path / "facts.json").read_text()))
    checkpoint = next(tmp_path.glob("killed/*/assistant/runs/*/checkpoints/checkpoint-4"))
    assert json.loads((checkpoint / "complete.json").read_text())["sharding"] == setting
    assert {path.suffix for path in checkpoint.iterdir()} <= {".json", ".safetensors", ".md"}
    again = run(torchrun("-m", "lcia", "run", "stream.yaml", "--set", "output=killed"), tmp_path)
    assert again.returncode == 0, again.stderr[-3000:]
    through, resumed = store(tmp_path, "through"), store(tmp_path, "killed")
    steps = [e["step"] for e in resumed.current.journal() if e["event"] == "step"]
    assert steps == list(range(1, 9))
    assert "resumed" in {event["event"] for event in resumed.current.journal()}
    assert_close(tensors(resumed), tensors(through), rtol=0, atol=0)
    assert_close(tensors(through), tensors(one), rtol=0, atol=1e-5)
    assert answers(through) == answers(resumed) == answers(one)


def assert_in_force(setting, facts):
    """The model itself says what docs/distributed.md does."""
    rows = [
        line.split("|")[1:-1]
        for line in TABLE.read_text().splitlines()
        if "half |" in line or "whole |" in line
    ]
    said = {cells[0].strip(): [cell.strip(" `") for cell in cells[2:6]] for cells in rows}
    assert set(said) == set(SETTINGS)
    shares = [{"whole": 1.0, "half": 0.5}[word] for word in said[setting][1:]]
    assert facts["wrapped_in"] == said[setting][0]
    found = [facts[part] for part in ("base model", "adapter", "optimizer")]
    assert found == pytest.approx(shares, abs=0.02)
    assert facts["stage"] == (int(setting[-1]) if setting.startswith("ZeRO") else None)
    assert facts["dtensors"] == (setting == "FSDP2")


@pytest.mark.slow
def test_fsdp_goes_on_with_its_steps_on_another_number_of_processes(
    tmp_path, tiny_model, colours, shades
):
    write_stream(tmp_path, tiny_model, [colours, shades], fsdp=True, **SHARED)
    run(torchrun(RANKS, "facts.json", KILL_AT, "stream.yaml"), tmp_path)
    command = ["-m", "lcia", "run", "stream.yaml", "--set", "output=killed"]
    again = run(torchrun(*command, processes=4), tmp_path)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "each step keeps its 4 samples" in again.stderr
    found, expected = tensors(store(tmp_path, "killed")), tensors(store(tmp_path, "through"))
    assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["FSDP2", "ZeRO-3"])
def test_an_assistant_that_is_there_learns_another_task(
    setting, tmp_path, tiny_model, colours, shades
):
    settings = {"per_device_train_batch_size": 2, **SHARED, **SETTINGS[setting]}
    values = [f"training.{key}={json.dumps(value)}" for key, value in settings.items()]
    new = ["--model", str(tiny_model), "--set", "dtype=float32"]
    new += [word for value in values for word in ("--set", value)]
    for task, more in ((colours, new), (shades, [])):
        command = ["-m", "lcia", "learn", "store", write_data(tmp_path, task), "--name", task.name]
        done = run(torchrun(*command, *more), tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("Scores in percent") == 1
    assert [v.manifest["group"] for v in Store.open(tmp_path / "store").history()] == ["g1", "g1"]
    assert Store.open(tmp_path / "store").verify() == []
    # Answering spreads nothing: one process does.
    done = run([sys.executable, "-m", "lcia", "eval", "store"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


def launch(**asked) -> Launch:
    common = {"processes": 2, "rank": 0, "cpu": True, "timeout_s": 60, "backend": None}
    return Launch(**{**common, "zero": 0, "fsdp": False, **asked})


@pytest.mark.parametrize("asked", [{}, {"fsdp": True}, {"zero": 2}])
def test_what_is_asked_for_and_not_in_force_is_an_error(asked):
    with pytest.raises(ConfigError, match="is asked for, and in force is one process alone"):
        check_wrapped(nn.Linear(2, 2), launch(**asked))
    check_wrapped(nn.Linear(2, 2), launch(processes=1))


@pytest.mark.parametrize(
    "asked", [{"fsdp": True}, {"deepspeed": {"zero_optimization": {"stage": 3}}}]
)
def test_one_process_that_shall_shard_is_refused_with_a_command_that_works(asked):
    with pytest.raises(ConfigError, match=r"this is one.*--nproc_per_node 2 -m lcia"):
        launch_of(asked)


@pytest.mark.parametrize(
    ("method", "projector", "said"),
    [("ewc", False, "method ewc .* FSDP2"), ("lcia", True, "projector: .* FSDP2"), ("lcia", 0, "")],
)
def test_what_needs_whole_parameters_is_refused_by_name(method, projector, said, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = AssistantConfig(model="m", method=method, training={"fsdp": True})
    if not said:
        check_spread(config.build_method(), config, projector=bool(projector))
        return
    with pytest.raises(ConfigError, match=said):
        check_spread(config.build_method(), config, projector=bool(projector))


@pytest.mark.parametrize("config", ["ds.json", {"zero_optimization": 2}, {"steps_per_print": 1}])
def test_a_configuration_that_cannot_be_is_left_to_the_check_of_settings(config):
    assert launch_of({"deepspeed": config}).zero == 0


def test_images_under_zero_3_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for stage in (2, 3):
        training = SETTINGS[f"ZeRO-{stage}"]
        config = AssistantConfig(model="m", method="lcia", training=training)
        ask = partial(check_spread, config.build_method(), config, projector=False, images=True)
        if stage == 2:
            ask()
            continue
        with pytest.raises(ConfigError, match="ZeRO-3 gathers the vision tower"):
            ask()


@pytest.mark.parametrize(("name", "key"), [("FSDP", "fsdp"), ("DEEPSPEED", "deepspeed")])
def test_what_only_accelerates_launcher_asks_for_is_refused(name, key, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ConfigError, match=f"lcia reads training.{key}"):
        launch_of({})
