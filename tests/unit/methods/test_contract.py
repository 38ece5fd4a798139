"""What holds for every method: settings, two tasks, stores, plain adapters, kill and resume."""

import functools
import json
import math
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, TrainerCallback

from golden_curves import GOLDEN, configure, curves
from lcia.config import AssistantConfig
from lcia.errors import ConfigError, DivergenceError
from lcia.grouping import InstructionCodebook
from lcia.learner import ContinualLearner, Store
from lcia.learner.training import _Steps, check_spread
from lcia.registry import METHODS
from lcia.store import transaction

NAMES = METHODS.names()
TRAINED = [name for name in NAMES if METHODS.get(name).trains]
DOCS = (Path(__file__).parents[3] / "docs" / "methods.md").read_text(encoding="utf-8")


class Killed(BaseException):
    """Stands for the process dying."""


def files_of(store: Store) -> dict[str, bytes]:
    """Every file of the current adapters: weights, expert routers, carried tensors, samples."""
    return {
        f"{group}/{path.name}": path.read_bytes()
        for group, (_, folder) in store.current.adapters.items()
        for path in sorted(folder.iterdir())
    }


@pytest.fixture(scope="module")
def straight(create, colours, shades):
    """Learn two tasks by a method, once for all tests."""

    @functools.cache
    def learn(name: str) -> Store:
        learner = create(name)
        learner.run([colours, shades])
        return learner.store

    return learn


@pytest.mark.parametrize("name", NAMES)
def test_two_tasks_are_learned_scored_and_stored_as_plain_adapters(name, straight, tiny_model):
    learned, method = straight(name), METHODS.get(name)
    matrix = learned.current.matrix()
    assert [matrix[2, i] is not None for i in (1, 2)] == [True, True]
    assert (matrix[1, 1] is None) == (matrix[0, 2] is None) == method.joint
    assert learned.verify() == []
    suffixes = {path.suffix for path in learned.root.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".jsonl", ".safetensors", ""}
    _, folder = learned.current.adapters["g1"]
    assert all("lora_" in name for name in load_file(folder / "adapter_model.safetensors"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # peft warns of missing and unexpected keys
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), folder)


@pytest.mark.parametrize("name", TRAINED)
def test_killed_in_the_second_task_and_resumed_is_equal_to_the_bit(
    name, straight, create, host, colours, shades, monkeypatch
):
    def die(self, args, state, control, **kwargs):
        if (self.task, state.global_step) == ("shades", 3):
            raise Killed

    cut = create(name)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(_Steps, "on_step_end", die)
        cut.run([colours, shades])
    assert cut.store.current.number == 1
    assert (cut.store.root / "runs/0002-shades/checkpoints/checkpoint-2/complete.json").is_file()
    again = ContinualLearner(Store.open(cut.store.root), host=host)
    again.run([colours, shades])
    assert files_of(again.store) == files_of(straight(name))
    steps = [e["step"] for e in again.store.current.journal() if e["event"] == "step"]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.parametrize("name", TRAINED)
def test_training_that_diverges_ends_at_its_step_and_the_next_try_is_free(
    name, create, host, colours, shades
):
    # Trainer by itself hides NaN, and would log one step in ten.
    hidden = {"logging_steps": 10, "logging_nan_inf_filter": True, "lr_scheduler_type": "constant"}
    wild = create(name, training={"learning_rate": 1e20, **hidden})
    events = []
    wild.listener = events.append
    with pytest.raises(DivergenceError, match=r"'colours', step \d+: .* below 1e\+20") as caught:
        wild.learn(colours)
    assert len(str(caught.value).splitlines()) == 1
    step = int(re.search(r"step (\d+)", str(caught.value)).group(1))
    seen = [event["loss"] for event in events if event["event"] == "step"]
    assert len(seen) == step - 1
    assert all(map(math.isfinite, seen))
    assert wild.store.current.number == 0
    assert not any((wild.store.root / "runs").iterdir())
    wild.config = create(name).config
    assert wild.learn(shades).version == 1, "another task is learned after that"


@pytest.mark.parametrize("name", TRAINED)
def test_what_diverges_in_the_second_task_leaves_the_first_version(name, create, colours, shades):
    learner = create(name)
    learner.learn(colours)
    calm, before = learner.config, files_of(learner.store)
    learner.config = calm.model_copy(update={"training": {**calm.training, "learning_rate": 1e20}})
    with pytest.raises(DivergenceError, match=r"'shades', step \d+"):
        learner.learn(shades)
    assert (learner.store.current.number, files_of(learner.store)) == (1, before)
    learner.config = calm
    assert learner.learn(shades).version == 2


@pytest.mark.parametrize("where", ["parameters", "carried"])
def test_no_version_holds_a_tensor_that_is_not_finite(where, create, colours, monkeypatch):
    def spoil(self, context):
        tensor = next(iter(context.parameters.values()))
        if where == "carried":
            return {"sums": tensor.detach().clone().fill_(float("nan"))}
        with torch.no_grad():
            tensor[0, 0] = float("inf")
        return {}

    monkeypatch.setattr(METHODS.get("sequential"), "finish", spoil)
    learner = create("sequential")
    with pytest.raises(DivergenceError, match="holds values that are not finite"):
        learner.learn(colours)
    assert learner.store.versions() == [0]
    assert not any((learner.store.root / "runs").iterdir())


def test_a_parameter_that_is_not_finite_ends_training_though_the_loss_is(
    create, colours, monkeypatch
):
    class Spoil(TrainerCallback):
        def on_step_end(self, args, state, control, *, model, **kwargs):
            if state.global_step == 2:
                name = next(n for n, p in model.named_parameters() if p.requires_grad)
                model.get_parameter(name).data[0, 0] = float("nan")

    learner = create("sequential")
    spoil = lambda self, trainer, context: trainer.add_callback(Spoil())  # noqa: E731
    monkeypatch.setattr(METHODS.get("sequential"), "attach", spoil)
    with pytest.raises(DivergenceError, match="step 2: parameters are not finite"):
        learner.learn(colours)


def test_committing_checks_every_tensor_once_more(create, colours, tmp_path):
    store = create("sequential").store
    save_file({"w": torch.tensor([1.0, float("nan")])}, tmp_path / "adapter_model.safetensors")
    run = transaction.begin(store, colours.name, lambda schema: "made of something")
    adapter = run.folder / "adapter"
    shutil.copytree(tmp_path, adapter)
    (run.folder / "version").mkdir()
    InstructionCodebook().save(run.folder / "version" / "codebook.json")
    store.current.matrix().save(run.folder / "version" / "matrix.json")
    transaction.propose(store, run, colours, group="g1", adapters={"g1": adapter}, contents={})
    with pytest.raises(DivergenceError, match=r"adapter_model.safetensors: 'w' holds values"):
        transaction.commit(store, run)
    assert store.versions() == [0]
    assert not (store.root / "groups").exists()


@pytest.mark.parametrize("name", NAMES)
def test_settings_have_defaults_and_unknown_or_impossible_ones_are_named(name):
    method = METHODS.get(name)
    assert method().config == dict(method.settings)
    nearest = f"Nearest: {next(iter(method.settings))}" if method.settings else "Choices: "
    typo = f"{next(iter(method.settings), 'sett')}x"
    with pytest.raises(ConfigError, match=rf"method\.{typo} is not a setting of .*{nearest}"):
        method(**{typo: 1})
    for key in method.settings:
        with pytest.raises(ConfigError, match=rf"method\.{key} is (-1|'a').*expected a"):
            method(**{key: -1})
        with pytest.raises(ConfigError, match=rf"method\.{key} is 'a'; expected a"):
            method(**{key: "a"})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("grouping", ["off", "on", "per_task"])
def test_groupings_work_or_are_refused_in_one_line(name, grouping):
    config = AssistantConfig(model="m", method=name, grouping=grouping)
    groups = {"off": "one", "on": "similar"}.get(grouping, grouping)
    if groups in METHODS.get(name).groupings:
        assert config.resolve_grouping().groups == groups
        return
    with pytest.raises(ConfigError, match=f"{groups!r}; method {name} works with") as caught:
        config.check()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("kind", ["FSDP2", "ZeRO-2"])
def test_methods_that_need_whole_parameters_say_so_where_they_are_spread(name, kind, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    asked = (
        {"fsdp": True} if kind == "FSDP2" else {"deepspeed": {"zero_optimization": {"stage": 2}}}
    )
    config = AssistantConfig(model="m", method=name, training=asked)
    method = config.build_method()
    if method.sharded:
        check_spread(method, config, projector=False)
    else:
        with pytest.raises(ConfigError, match=f"method {name} .* {kind} spreads over processes"):
            check_spread(method, config, projector=False)


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_methods_has_its_row_with_every_setting(name):
    row = re.search(rf"^\| `{name}` \|.*$", DOCS, re.MULTILINE)
    assert row, f"docs/methods.md has no row for {name}"
    for key, default in METHODS.get(name).settings.items():
        assert f"`{key}` {default:g}" in row.group()


def test_the_method_of_one_s_own_on_the_page_works(built, host, colours):
    code = re.search(r"```python\n(.*?)```", DOCS, re.DOTALL).group(1)
    names = {}
    exec(code, names)
    opened = built("sequential")
    before = {n: p.detach().clone() for n, p in opened.context.parameters.items()}
    assert names["Noisy"](scale=1.0).finish(opened.context) == {}
    moved = [name for name, p in opened.context.parameters.items() if not p.equal(before[name])]
    assert moved == [name for name in before if "lora_A" in name], "B is 0, and stays"


EXPECTED = json.loads(GOLDEN.read_text(encoding="utf-8"))
WITH_A_CURVE = [name for name in METHODS.builtin if METHODS.get(name).trains]


def test_every_method_has_its_curve():
    assert sorted(EXPECTED) == sorted(WITH_A_CURVE)


@pytest.mark.parametrize("name", WITH_A_CURVE)
def test_losses_are_those_of_the_golden_curve(name, host, tiny_model, tmp_path, colours, shades):
    learner = ContinualLearner.create(tmp_path / "a", configure(tiny_model, name), host=host)
    found = curves(learner, [colours, shades])
    for task, losses in EXPECTED[name].items():
        assert len(losses) == 10
        # Sums are added up in another order on another processor.
        assert found[task] == pytest.approx(losses, rel=1e-4)


def test_methods_that_protect_differ_from_plain_training_in_the_second_task_only():
    plain = EXPECTED["sequential"]
    for name in ("l2", "lwf", "ewc", "lcia_paper", "fixed_ema"):
        assert EXPECTED[name]["colours"] == pytest.approx(plain["colours"], rel=1e-4), name
    for name in ("l2", "lwf", "ewc"):
        assert EXPECTED[name]["shades"] != pytest.approx(plain["shades"], rel=1e-4), name
