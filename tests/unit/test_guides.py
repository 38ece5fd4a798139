"""The guides for contributors are true: their examples run, their files and names exist."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lcia.data import read
from lcia.ema import DynamicEMA
from lcia.methods.base import Method
from lcia.registry import METHODS, READERS, RULES

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
READER, RULE, METHOD = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


def made(code, name):
    """Run an example, and return what it defines."""
    names = {"__name__": "example"}
    exec(compile(code, name, "exec"), names)
    return names[name]


def choosable(monkeypatch, registry, name, value):
    """Make ``value`` what the registry returns for ``name``, as a line in its table would."""
    monkeypatch.setitem(registry.builtin, name, f"{__name__}:value")
    found = type(registry).get

    def get(self, wanted):
        return value if wanted == name and self is registry else found(self, wanted)

    monkeypatch.setattr(type(registry), "get", get)


def test_the_reader_of_the_guide_reads(tmp_path, monkeypatch):
    choosable(monkeypatch, READERS, "flashcards", made(READER, "FlashcardReader"))
    path = tmp_path / "cards.jsonl"
    path.write_text(json.dumps({"front": "Capital of Peru?", "back": "Lima"}) + "\n")
    (sample,) = read(path)
    assert (sample.prompt, sample.answers) == ("Capital of Peru?", ("Lima",))


def test_the_rule_of_the_guide_averages(monkeypatch):
    choosable(monkeypatch, RULES, "gentle", made(RULE, "Gentle"))
    parameter = torch.nn.Parameter(torch.zeros(4))
    ema = DynamicEMA([("p", parameter)], rule="gentle")
    for _ in range(2):
        parameter.grad = torch.full((4,), 0.25)  # |g| = 1
        with torch.no_grad():
            parameter.add_(1.0)
        ema.update()
    # The first step falls back to 0.01; then 0.05 of the way that is left to 2.
    ema.copy_to_parameters()
    torch.testing.assert_close(parameter.detach(), torch.full((4,), 0.01 + 0.05 * (2 - 0.01)))


def test_the_method_of_the_guide_is_one(colours, shades, tmp_path, tiny_model, monkeypatch):
    from lcia.config import AssistantConfig
    from lcia.learner import ContinualLearner

    half = made(METHOD, "Half")
    assert issubclass(half, Method)
    choosable(monkeypatch, METHODS, "half", half)
    settings = {"max_steps": 2, "learning_rate": 1e-2, "save_steps": 100}
    config = AssistantConfig(
        model=str(tiny_model), method="half", dtype="float32", training=settings
    )
    learner = ContinualLearner.create(tmp_path / "a", config)
    assert learner.learn(colours).group == learner.learn(shades).group


@pytest.mark.parametrize("guide", ["CONTRIBUTING.md", "AGENTS.md", "docs/architecture.md"])
def test_files_that_a_guide_names_exist(guide):
    text = (ROOT / guide).read_text(encoding="utf-8")
    named = re.findall(r"`((?:src|tests|docs|benchmarks)/[\w./-]+)`", text)
    assert named or guide == "AGENTS.md"
    for name in named:
        assert (ROOT / name).exists() or "*" in name, f"{guide}: {name}"


def test_the_walk_names_what_is_there():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    walk = re.findall(r"^\d\. `src/(lcia/[\w/]+)\.py`, `([\w.]+)`", text, re.MULTILINE)
    assert len(walk) == 5
    for module, name in walk:
        value = importlib.import_module(module.replace("/", "."))
        for part in name.split("."):
            value = getattr(value, part)
        assert callable(value)


def test_every_room_of_the_floor_plan_is_there_and_none_is_left_out():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = {p.name for p in (ROOT / "src/lcia").iterdir() if p.is_dir() and p.name[0] != "_"}
    plan = text.partition("## Floor plan")[2].partition("## The path")[0]
    named = set(re.findall(r"`(\w+)/", plan))
    assert rooms == named


SCRIPT = ROOT / "benchmarks" / "gpu.sh"
TEXT = SCRIPT.read_text().replace("\\\n", " ")
STEPS = [line.split() for line in TEXT.splitlines() if line.lstrip().startswith("step ")]
MODULES = sorted({words[words.index("-m") + 1] for words in STEPS} - {"pytest"})


def test_it_parses():
    subprocess.run(["bash", "-n", SCRIPT], check=True)


def test_without_a_gpu_it_says_so_in_one_line_and_exits_with_2(tmp_path):
    env = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    results = tmp_path / "gpu.jsonl"
    done = subprocess.run(
        ["bash", SCRIPT, results], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "gpu.sh: no GPU to see here; nothing was measured.\n"
    assert not results.exists()


@pytest.mark.parametrize("module", MODULES)
def test_what_it_calls_takes_the_options_it_gives(module):
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    own = [words for words in STEPS if module in words]
    given = {word for words in own for word in words if word.startswith("--")}
    assert given <= set(re.findall(r"--[a-z-]+", done.stdout))


def test_the_tests_it_runs_are_there():
    files = re.findall(r"tests/\S+\.py", TEXT)
    assert files
    assert all((ROOT / file).is_file() for file in files)
