"""The guides are true: their examples run; their commands, files and names exist."""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat
import pytest
import torch
import yaml
from nbclient import NotebookClient
from typer.main import get_command

from lcia.cli.main import app
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


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?:(?<=\n\n)|\A)((?: {4}[^\n]*\n+)+)")
ENDS = {"&&", "||", "|", "&", ";", ">", "2>", ">>", "<"}


def blocks(page):
    """Yield the language and text of each block of code; indented ones have no language."""
    text = page.read_text(encoding="utf-8")
    yield from FENCED.findall(text)
    yield from (("", textwrap.dedent(found)) for found in INDENTED.findall(FENCED.sub("", text)))


def commands(text):
    """Yield the words of each ``lcia`` command in lines of shell, without what stands around."""
    for line in text.replace("\\\n", " ").splitlines():
        if not re.search(r"(?:^|\s)lcia [a-z]", line) or line.startswith(("Usage:", "$ lcia")):
            continue
        words = [*shlex.split(line, comments=True), "&&"]
        while words:
            end = next(i for i, word in enumerate(words) if word in ENDS)
            part, words = words[:end], words[end + 1 :]
            if part[:2] == ["docker", "build"] or part[:1] == ["pip"] or "lcia" not in part:
                continue
            yield part[len(part) - part[::-1].index("lcia") :]


def parse(words):
    """Parse a command as the command line does, without running it."""
    command = get_command(app)
    while hasattr(command, "commands"):
        name, *words = words
        assert name in command.commands, f"there is no lcia {name}"
        command = command.commands[name]
    command.make_context(command.name, list(words))


def shown_commands(command=None, name="lcia"):
    """Yield the commands that pages show, and those that ``--help`` gives as examples."""
    for page in PAGES if command is None else ():
        for language, text in blocks(page):
            if language in ("", "sh", "bash", "console"):
                yield from ((page.name, words) for words in commands(text))
    command = command or get_command(app)
    yield from ((f"{name} --help", words) for words in commands(command.help or ""))
    for verb, inner in getattr(command, "commands", {}).items():
        yield from shown_commands(inner, f"{name} {verb}")


def test_every_command_of_the_docs_is_one(capsys):
    found = list(shown_commands())
    for page, words in found:
        try:
            parse(words)
        except Exception as error:
            raise AssertionError(f"{page}: lcia {shlex.join(words)}: {error}") from error
    with capsys.disabled():
        print(f"\n{len(found)} lcia commands of {len(PAGES)} pages and of --help are understood")  # noqa: T201
    assert len(found) >= 100


def test_a_wrong_command_would_be_found():
    ((first, second),) = [list(commands("lcia learn a b.jsonl --nme x && lcia serv a"))]
    for words in (first, second):
        with pytest.raises(Exception, match=r"nme|serv"):
            parse(words)


def test_every_python_block_of_the_docs_compiles_and_imports_what_there_is(capsys):
    count = 0
    for page in PAGES:
        for language, text in blocks(page):
            if language != "python":
                continue
            count += 1
            compile(text, page.name, "exec")
            for module, names in re.findall(r"^from (lcia[\w.]*) import (.+)$", text, re.MULTILINE):
                for name in names.split(", "):
                    assert hasattr(importlib.import_module(module), name), f"{page.name}: {name}"
    with capsys.disabled():
        print(f"\n{count} Python blocks of the docs compile")  # noqa: T201
    assert count >= 15


def test_the_scorer_of_the_guide_scores():
    text = (ROOT / "docs" / "howto.md").read_text(encoding="utf-8")
    first_word = made(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], "first_word")
    assert first_word("red, I think", ["red car"]) == 0.0
    assert first_word("red car", ["blue", "red"]) == 1.0


def test_what_the_containers_run_is_understood():
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    run = [service["command"] for service in compose["services"].values() if "command" in service]
    run += re.findall(r"^# .* lcia (lcia .*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    found = [words for text in run for words in commands(text)]
    assert [words[0] for words in found] == ["serve", "worker", "gateway", "learn"]
    for words in found:
        parse(words)


def test_the_containers_name_what_is_there():
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    services = compose["services"]
    for service in services.values():
        assert set(service.get("depends_on", ())) <= services.keys()
        assert set(service.get("secrets", ())) <= compose["secrets"].keys()
        assert "image" in service
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    for line in re.findall(r"^COPY (.+)$", dockerfile, re.MULTILINE):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists() and f"!{name}" in allowed, name
    wanted = re.search(r'"\.\[([\w,]+)\]"', dockerfile)[1].split(",")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in wanted)
    assert re.search(r"^USER (?!root)", dockerfile, re.MULTILINE)


# Notebooks


@pytest.fixture
def told(tmp_path):
    """Run a notebook in an empty folder; return what each of its code cells printed and drew."""

    def run(name):
        notebook = nbformat.read(ROOT / "examples" / f"{name}.ipynb", as_version=4)
        NotebookClient(notebook, timeout=900, resources={"metadata": {"path": tmp_path}}).execute()
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        return [
            "".join(o.get("text", "") for o in cell.outputs if o.get("name") == "stdout")
            + "".join("(picture)" for o in cell.outputs if "image/png" in o.get("data", {}))
            for cell in cells
        ]

    return run


def test_the_notebook_on_averages_computes_the_papers_formula(told):
    *_, kept, plot, shares, by_hand = told("dynamic_ema")
    figures = {line[:12].strip(): line.split() for line in kept.splitlines()[1:]}
    plain, release = figures["plain"], figures["release"]
    assert int(plain[-2]) < 70 < int(plain[-1])  # the first task is overwritten
    assert int(release[-4]) > int(plain[-2])  # and less so in an average that remembers
    assert plot == "(picture)"
    assert re.fullmatch(r"paper \{.*\}\nrelease \{.*'out_of_range': '\d+ %'\}\n", shares)
    steps = re.findall(r"step \d: by hand (\S+), lcia (\S+)", by_hand)
    assert len(steps) == 4
    assert all(ours == theirs for ours, theirs in steps)
    assert any(ours != "0.9900" for ours, _ in steps)  # the closed form, not its fallback


def test_the_notebook_on_three_tasks_forgets_nothing(told):
    shown, learned, kept, chosen, answered = told("three_tasks")
    assert shown.count(" -> ") == 3
    groups = re.findall(r"group (g\d), 0 before", learned)
    assert groups[0] != groups[1]
    accuracy, forgetting = re.search(r"accuracy (\S+) %, forgetting (\S+) points", kept).groups()
    assert float(accuracy) > 70
    assert float(forgetting) < 10
    assert kept.endswith("(picture)")
    assert chosen.count("<-") == 1
    assert "expand " in chosen
    assert re.findall(r"\(group (g\d), (?:reached|content)\)", answered) == groups
