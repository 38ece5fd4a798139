"""What the gate catches: candidates made bad on purpose, and good ones, on a tiny model.

    export PYTHONPATH=tests
    python -m benchmarks.gate            # kept as gate; stopped, it goes on
    python -m benchmarks.gate --table    # writes the table in docs/live.md from it

A small Llama is first taught, in memory, what the gate's own prompts ask for, so that it has a
general ability to lose; then two tasks. Each candidate learns a third on a copy of that assistant:
half of them in the group of an earlier task, half in a new one. Half of the bad ones are held out
by clean samples, half by samples that are as bad as the training data, which no test of the new
task can tell. A plain ``max_drop`` gate judges the same scores.
"""

import argparse
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from benchmarks.measured import MEASURED, keep, kept
from conftest import save_tiny_model
from lcia.config import AssistantConfig
from lcia.data import Message, Sample, Task
from lcia.errors import DivergenceError, GateError
from lcia.files import write_text
from lcia.learner import ContinualLearner, Store, load_host
from lcia.models.host import AdapterHost
from lcia.store.transaction import refused

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "live.md"
BEGIN, END = "<!-- gate -->", "<!-- /gate -->"

VOWELS, LABELS = "aeiou", "vwxyz"
REFUSAL = "I cannot help with that."
TRAINING = {
    "max_steps": 60,
    "per_device_train_batch_size": 8,
    "learning_rate": 3e-3,
    "save_steps": 1000,  # what is killed here begins its candidate anew
}
HELD_OUT, TRAINED = 40, 120
DROPS = (0.0, 5.0)
"""What the plain gate allows, in points."""

KNOWN = "Sort this word into a drawer."
"""Instruction of the first task, which half of the candidates share."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A candidate.

    Attributes:
        kind: ``good``, or what is wrong with it.
        task: what it learns.
        training: over ``TRAINING``.
    """

    kind: str
    task: Task
    training: Mapping[str, Any]


def pretrain(folder: Path, *, steps: int) -> AdapterHost:
    """Write a small Llama that answers the gate's prompts, and return it loaded."""
    save_tiny_model(folder, hidden_size=64, intermediate_size=160, num_key_value_heads=4)
    host = load_host(AssistantConfig(model=str(folder), dtype="float32"))
    model = host.base.model
    examples = [host.chat.encode_example(sample(q, a)) for q, a in general()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    dice = random.Random(0)
    model.train()
    for _ in range(steps):
        batch = host.chat.collate(dice.sample(examples, 16))
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()
    model.save_pretrained(folder)
    return host


def general() -> list[tuple[str, str]]:
    """Return prompts and answers that the model knows before any task."""
    prompts = json.loads(files("lcia.gate").joinpath("prompts.json").read_text())
    known = [tuple(pair) for pair in prompts["neutral"] + prompts["untaught"]]
    known += [(p, f'{{"k": {i}}}') for i, p in enumerate(prompts["json"])]
    known += [(p, "Take it slowly.") for p in prompts["benign"]]
    known += [(p, REFUSAL) for p in prompts["harmful"]]
    dice = random.Random(1)
    words = [word_of(dice) for _ in range(len(known))]
    return known + [(f"Say the last letter.\n\n{word}", word[-1]) for word in words]


def sample(prompt: str, answer: str, *, name: str = "0", instruction: str | None = None) -> Sample:
    """Return one prompt with its answer."""
    turn = Message(role="user", content=prompt)
    return Sample(id=name, messages=(turn,), answers=(answer,), instruction=instruction)


def table_of(dice: random.Random) -> dict[str, str]:
    """Return which label the words that end in a vowel have: what a task teaches."""
    return dict(zip(VOWELS, dice.sample(LABELS, len(LABELS)), strict=True))


def word_of(dice: random.Random) -> str:
    """Return a made-up word."""
    return "".join(dice.choice("bcdfghjklmnprst") + dice.choice(VOWELS) for _ in range(2))


def task_of(
    name: str,
    instruction: str,
    labels: Mapping[str, str],
    *,
    answer: Callable[[str], str] = str,
    held_out: Callable[[str], str] = str,
    ending: str = "",
) -> Task:
    """Return a task that labels words by their last vowel; no held-out word is among the others.

    Args:
        name: of the task.
        instruction: what prompts say.
        labels: vowel to label.
        answer: spoils the labels of the training samples.
        held_out: spoils those of the held-out samples.
        ending: of every word.
    """
    dice = random.Random(name)
    words = list(dict.fromkeys(word_of(dice) for _ in range(4 * (TRAINED + HELD_OUT))))

    def made(i: int, spoil: Callable[[str], str]) -> Sample:
        word = words[i]
        text = f"{instruction}\n\n{word}{ending}"
        return sample(text, spoil(labels[word[-1]]), name=str(i), instruction=instruction)

    return Task(
        name=name,
        train=tuple(made(i, answer) for i in range(TRAINED)),
        test=tuple(made(TRAINED + i, held_out) for i in range(HELD_OUT)),
        instruction="first_line",
        max_new_tokens=26,  # a refusal takes 24
    )


def cases(earlier: Task, labels: Mapping[str, str], *, each: int) -> list[Case]:
    """Return ``each`` bad candidates of every kind, and as many good ones as bad."""
    kinds = ("label noise", "overwritten", "format broken", "diverged", "refusing")
    found = []
    for number in range(each):  # so that a run that is stopped has some of every kind
        for k, kind in enumerate(kinds):
            found += [bad(kind, number, labels), good(5 * number + k, earlier, labels)]
    return found


def good(number: int, earlier: Task, labels: Mapping[str, str]) -> Case:
    """Return a good candidate: another task, or more words of the first one."""
    name = f"good-{number}"
    if number % 2:
        task = task_of(name, instruction(number), table_of(random.Random(name)))
        return Case(kind="good", task=task, training={})
    # Words with another ending; the known ones are taught along.
    task = task_of(name, KNOWN, labels, ending="bdgklmnprs"[number // 2 % 10])
    task = replace(task, train=(*task.train, *earlier.train))
    return Case(kind="good", task=task, training={"learning_rate": 2e-3})


def bad(kind: str, number: int, labels: Mapping[str, str]) -> Case:
    """Return a candidate that is bad in one way."""
    dice = random.Random(f"{kind} {number}")
    told, table = instruction(number), table_of(dice)
    clean, training, spoil = number % 4 < 2, {}, str
    if kind == "label noise":
        spoil = lambda label: dice.choice(LABELS)  # noqa: E731
    elif kind == "overwritten":  # the first task's words, of which more and more change label
        moved = VOWELS[: 1 + number % len(VOWELS)]
        turned = {a: b for a, b in zip(moved, moved[1:] + moved[:1], strict=True)}
        other = {moved: LABELS[(LABELS.index(labels[moved]) + 1) % 5]} if len(moved) == 1 else {}
        table = {vowel: labels[turned.get(vowel, vowel)] for vowel in VOWELS} | other
        told, clean = KNOWN, True
    elif kind == "format broken":
        spoil = lambda label: f'{{"label": "{label}'  # noqa: E731
    elif kind == "refusing":
        spoil = lambda label: REFUSAL  # noqa: E731
    else:
        training, clean = {"learning_rate": 0.1 * 2 ** (number % 4)}, True
    name = f"{kind.replace(' ', '-')}-{number}"
    task = task_of(name, told, table, answer=spoil, held_out=str if clean else spoil)
    return Case(kind=kind, task=task, training=training)


def instruction(number: int) -> str:
    """Return the first task's instruction for even numbers, one of its own for odd ones."""
    subjects = ["metal", "river", "sound", "plant", "stone", "cloud", "spice", "cloth"]
    subject = subjects[number % len(subjects)]
    return KNOWN if number % 2 == 0 else f"Which drawer holds this kind of {subject} ({number})?"


def judge(host: AdapterHost, made: Store, case: Case, folder: Path) -> dict[str, Any]:
    """Let one candidate learn on a copy of the assistant; return what became of it."""
    root = folder / case.task.name
    shutil.copytree(made.root, root)
    learner = ContinualLearner(Store.open(root), host=host)
    config = learner.config
    settings = {"training": {**config.training, **case.training}, "gate": config.gate.for_jobs()}
    learner.config = config.model_copy(update=settings)
    try:
        learner.learn(case.task)
        report: Any = learner.store.current.gate()
    except GateError:
        ((_, report),) = refused(learner.store).values()
    except DivergenceError:
        report = None
    shutil.rmtree(root)
    if report is None:
        return {"kind": case.kind, "name": case.task.name, "failed": ["not finite"], "drop": None}
    before, after = report["before"], report["after"]
    drops = [old - after[t] for t, old in before.items() if t != case.task.name and old is not None]
    return {
        "kind": case.kind,
        "name": case.task.name,
        "failed": sorted({c["check"] for c in report["checks"] if not c["passed"]}),
        "why": [c["why"] for c in report["checks"] if not c["passed"]],
        "drop": round(max(drops), 2),
        "new": [before.get(case.task.name), after[case.task.name]],
        "general": {
            c["name"]: round(c["measured"], 3) for c in report["checks"] if c["check"] == "general"
        },
    }


def run(results: Path, *, each: int, steps: int) -> None:
    """Judge all candidates and write one row each; those that are there are not made again."""
    started = time.process_time()
    rows = (kept("gate", results) or {"candidates": []})["candidates"]
    done = {row["name"] for row in rows}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        host = pretrain(folder / "model", steps=steps)
        config = AssistantConfig(
            model=str(folder / "model"),
            dtype="float32",
            method="sequential",
            grouping={"groups": "similar"},
            training=TRAINING,
        )
        learner = ContinualLearner.create(folder / "assistant", config, host=host)
        labels = table_of(random.Random("first"))
        first = task_of("first", KNOWN, labels)
        second = task_of("second", "Name the shelf of this book.", table_of(random.Random("2nd")))
        learner.run([first, second])
        known = dict(learner.store.current.matrix().row(2))
        for case in cases(first, labels, each=each):
            if case.task.name in done:
                continue
            rows.append(judge(host, learner.store, case, folder))
            report = {"known": known, "torch": torch.__version__, "candidates": rows}
            keep("gate", report, results)
            told = ", ".join(rows[-1]["failed"]) or "passes"
            print(f"{time.process_time() - started:5.0f} s  {case.task.name}: {told}", flush=True)


def table(found: Mapping[str, Any]) -> str:
    """Return the results as a table of Markdown."""
    by_kind: dict[str, list[Mapping[str, Any]]] = {}
    for row in found["candidates"]:
        by_kind.setdefault(row["kind"], []).append(row)
    head = "| candidates | made | refused by the gate | by which check | refused by "
    head += " | refused by ".join(f"`max_drop: {drop:g}`" for drop in DROPS)
    lines = [f"{head} |", "| --- | ---: | ---: | --- |" + " ---: |" * len(DROPS)]
    kinds = [kind for kind in by_kind if kind != "good"]
    for kind in [*kinds, "good"]:
        lines.append(_line(kind, by_kind[kind]))
    lines.append(_line("all bad ones", [row for kind in kinds for row in by_kind[kind]]))
    return "\n".join(lines)


def _line(kind: str, rows: Sequence[Mapping[str, Any]]) -> str:
    by = Counter(check for row in rows for check in row["failed"])
    told = ", ".join(f"{check} {count}" for check, count in by.most_common()) or "–"
    plain = [sum(row["drop"] is None or row["drop"] > allowed for row in rows) for allowed in DROPS]
    cells = [kind, len(rows), sum(bool(row["failed"]) for row in rows), told, *plain]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=8, help="bad candidates of each kind")
    parser.add_argument("--steps", type=int, default=400, help="steps that make the model")
    parser.add_argument("--table", action="store_true", help="write the table alone")
    parser.add_argument("--results", type=Path, default=MEASURED)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if not asked.table:
        run(asked.results, each=asked.each, steps=asked.steps)
    found = kept("gate", asked.results)
    if asked.results != MEASURED:
        print(table(found))
        return
    before, _, rest = PAGE.read_text().partition(BEGIN)
    write_text(PAGE, f"{before}{BEGIN}\n{table(found)}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
