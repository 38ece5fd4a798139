"""``builtin:skills``: right answers, nothing learned in the test, the same everywhere."""

import os
import re
import subprocess
import sys

import pytest

from lcia.data import load_stream
from lcia.demo import facts
from lcia.errors import MissingDependencyError

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
