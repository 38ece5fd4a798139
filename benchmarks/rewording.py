"""Routing when the instruction is reworded: ``python -m benchmarks.rewording --data FOLDER``.

Every task of a folder of SuperNI files teaches its definition and 100 prompts; 20 others are asked,
whose instruction is the definition, its first sentence, an example instead of it, another wording
(``benchmarks/rewordings.json``), German, or missing. With ``below: nearest`` and ``below:
content``; and how many prompts of a task that was never taught go to the base model, at several
floors of what counts as on topic. Prints tables; kept as rewording.

``python -m benchmarks.rewording --store ASSISTANT`` asks a taught assistant's held-out samples in
other words instead, and says how much of the score of each task's own adapter routing keeps.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from benchmarks.measured import keep
from benchmarks.routing import Task, read_task
from lcia.data import Message, Sample
from lcia.grouping import GroupingConfig, InstructionCodebook, InstructionRecipe, Router
from lcia.grouping.instruction import told
from lcia.learner import Store, load_host
from lcia.registry import SCORERS

HERE = Path(__file__).parent
POLICIES = ("nearest", "content")
FLOORS = (0.05, 0.1, 0.15, 0.2, 0.3)
BATCH = 30


def with_rewordings(task: Task, wordings: dict[str, dict[str, str]]) -> Task:
    """Return a task that is also asked in other words, in German, and without an instruction."""
    frame = task.test["definition"][0].removesuffix(task.asked[0])
    assert frame.strip() == task.definition
    own = wordings[task.name.partition("_")[0]]
    more = {kind: [f"{text}\n\n{asked}" for asked in task.asked] for kind, text in own.items()}
    return Task(
        name=task.name,
        definition=task.definition,
        train=task.train,
        test={**task.test, **more, "missing": list(task.asked)},
        asked=task.asked,
    )


def teach(tasks: list[Task], below: str) -> Router:
    """Return a router with a group a task."""
    codebook = InstructionCodebook(GroupingConfig(below=below))
    for task in tasks:
        recipe = InstructionRecipe(kind="field")
        extraction = recipe.fit(task.train, [task.definition] * len(task.train))
        codebook.add(None, extraction, task=task.name, prompts=task.train)
    return Router(codebook)


def measure(tasks: list[Task], below: str) -> list[dict[str, Any]]:
    """Return, for each wording, the percent that reach their group, and of strangers the base."""
    router = teach(tasks, below)
    strangers = {
        task.name: teach([other for other in tasks if other is not task], below) for task in tasks
    }
    rows: list[dict[str, Any]] = []
    for wording in tasks[0].test:
        own, base = [], []
        for number, task in enumerate(tasks, start=1):
            for prompt in task.test[wording]:
                own.append(router.route(prompt).group == f"g{number}")
                base.append(strangers[task.name].route(prompt).group is None)
        rows.append(
            {
                "below": below,
                "wording": wording,
                "own_group_percent": 100 * sum(own) / len(own),
                "strangers_to_base_percent": 100 * sum(base) / len(base),
            }
        )
    return rows


def sweep(tasks: list[Task]) -> list[dict[str, Any]]:
    """Return, for each wording and floor, the percent of own prompts and of strangers below it.

    A stranger's subject is known where another task comes from the same collection: dstc3, say.
    """
    router = teach(tasks, "content")
    found: dict[str, list[tuple[bool, bool, float]]] = {wording: [] for wording in tasks[0].test}
    for task in tasks:
        others = teach([other for other in tasks if other is not task], "content")
        known = any(other is not task and _source(other) == _source(task) for other in tasks)
        for wording, prompts in task.test.items():
            for prompt in prompts:
                found[wording].append((True, known, router.codebook.read_content(prompt)[1]))
                found[wording].append((False, known, others.codebook.read_content(prompt)[1]))
    return [
        {
            "wording": wording,
            "floor": floor,
            "own_to_base_percent": _below(floor, [f for own, _, f in fits if own]),
            "strangers_to_base_percent": _below(floor, [f for own, _, f in fits if not own]),
            "of_new_subjects_percent": _below(
                floor, [f for own, known, f in fits if not own and not known]
            ),
        }
        for wording, fits in found.items()
        for floor in FLOORS
    ]


def _source(task: Task) -> str:
    """Return the collection a SuperNI task comes from, the second part of its name."""
    return task.name.split("_")[1]


def _below(floor: float, fits: list[float]) -> float:
    return 100 * sum(fit < floor for fit in fits) / len(fits)


def kept(store: Store, wordings: dict[str, dict[str, str]], *, each: int) -> list[dict[str, Any]]:
    """Return, for each policy and wording, what routing keeps of the own adapters' score."""
    version = store.current
    host = load_host(store.config)
    asked = [
        (task, wording, messages)
        for task in version.tasks()
        for sample in task.test[:each]
        for wording, messages in _worded(sample, wordings[task.name]).items()
    ]
    answers_of = [sample.answers for task in version.tasks() for sample in task.test[:each]]
    count = len(asked) // len(answers_of)
    known: dict[tuple[int, str | None], float] = {}

    def score(places: list[int], groups: list[str | None]) -> None:
        new = [(i, g) for i, g in zip(places, groups, strict=True) if (i, g) not in known]
        for start in range(0, len(new), BATCH):
            part = new[start : start + BATCH]
            texts = host.generate(
                [asked[i][2] for i, _ in part],
                [version.adapters[g] if g else None for _, g in part],
                max_new_tokens=max(asked[i][0].max_new_tokens for i, _ in part),
            )
            for (i, group), text in zip(part, texts, strict=True):
                known[i, group] = SCORERS.get(asked[i][0].scorer)(text, answers_of[i // count])

    rows = []
    for below in POLICIES:
        router = Router(version.codebook(), below)
        own = [router.route_task(task.name).group for task, _, _ in asked]
        routed = [router.route(told(messages)).group for _, _, messages in asked]
        score(list(range(len(asked))), own)
        score(list(range(len(asked))), routed)
        for wording in dict.fromkeys(wording for _, wording, _ in asked):
            places = [i for i, (_, w, _) in enumerate(asked) if w == wording]
            scores = {
                name: 100 * sum(known[i, groups[i]] for i in places) / len(places)
                for name, groups in (("own", own), ("routed", routed))
            }
            rows.append(
                {
                    "below": below,
                    "wording": wording,
                    "own_group_percent": 100
                    * sum(own[i] == routed[i] for i in places)
                    / len(places),
                    "score_of_own_adapter": scores["own"],
                    "score_routed": scores["routed"],
                }
            )
    return rows


def _worded(sample: Sample, wording: dict[str, str]) -> dict[str, tuple[Message, ...]]:
    """Return a sample's prompt with its own instruction, reworded, without, and as system turn."""
    instruction = sample.instruction or ""
    rest = sample.prompt.removeprefix(instruction).lstrip()
    first = re.split(r"(?<=[.!?])\s", instruction)[0]
    texts = {"own": instruction, "first sentence": first, **wording}
    asked = {name: (_user(f"{text}\n\n{rest}"),) for name, text in texts.items()}
    system = Message(role="system", content=instruction)
    return {**asked, "missing": (_user(rest),), "system": (system, _user(rest))}


def _user(text: str) -> Message:
    return Message(role="user", content=text)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--each", type=int, default=10, help="samples a task, with --store")
    parser.add_argument("--train", type=int, default=100)
    parser.add_argument("--test", type=int, default=20)
    arguments = parser.parse_args()
    wordings = json.loads((HERE / "rewordings.json").read_text(encoding="utf-8"))
    if arguments.store is not None:
        rows = kept(Store.open(arguments.store), wordings, each=arguments.each)
        _print(rows)
        keep("rewording_kept", {"each": arguments.each, "rows": rows})
        return
    tasks = [
        with_rewordings(read_task(path, train=arguments.train, test=arguments.test), wordings)
        for path in sorted(arguments.data.glob("*.json"))
    ]
    rows = [row for below in POLICIES for row in measure(tasks, below)]
    floors = sweep(tasks)
    _print(rows)
    _print(floors)
    keep(
        "rewording",
        {
            "tasks": len(tasks),
            "train": arguments.train,
            "test": arguments.test,
            "rows": rows,
            "floors": floors,
        },
    )


def _print(rows: list[dict[str, Any]]) -> None:
    """Print rows as Markdown."""
    print("| " + " | ".join(rows[0]) + " |\n" + "| --- " * len(rows[0]) + "|")
    for row in rows:
        cells = (f"{v:.1f}" if isinstance(v, float) and v > 1 else str(v) for v in row.values())
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
