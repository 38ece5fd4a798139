"""What holds for every method: settings, two tasks, stores, plain adapters, kill and resume."""

import functools
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lcia.config import AssistantConfig
from lcia.errors import ConfigError
from lcia.learner import ContinualLearner, Store
from lcia.learner.training import _check_sharding, _Steps
from lcia.registry import METHODS

NAMES = METHODS.names()
TRAINED = [name for name in NAMES if METHODS.get(name).trains]
DOCS = (Path(__file__).parents[3] / "docs" / "methods.md").read_text(encoding="utf-8")


class Killed(BaseException):
    """Stands for the process dying."""


def files_of(store: Store) -> dict[str, bytes]:
    """Every file of the current adapters: weights, gates, carried tensors, memory."""
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
@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_methods_that_need_whole_parameters_say_so_where_they_are_spread(name, kind):
    method = METHODS.get(name)()
    trainer = SimpleNamespace(accelerator=SimpleNamespace(distributed_type=kind), projector=None)
    if method.sharded:
        _check_sharding(trainer, method)
    else:
        with pytest.raises(ConfigError, match=f"{kind.value} spreads over processes"):
            _check_sharding(trainer, method)


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
