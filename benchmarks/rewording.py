"""Routing when the instruction is reworded: ``python -m benchmarks.rewording --data FOLDER``.

Every task of a folder of SuperNI files teaches its definition and 100 prompts; 20 others are asked,
whose instruction is the definition, its first sentence, an example instead of it, another wording
(``benchmarks/rewordings.json``), German, or missing. With ``below: nearest`` and ``below:
content``; and how many prompts of a task that was never taught go to the base model. Writes
benchmarks/results/rewording.json and prints a table.
"""

import argparse
import json
from pathlib import Path

from benchmarks.routing import Task, read_task
from lcia.files import write_json
from lcia.grouping import GroupingConfig, InstructionCodebook, InstructionRecipe, Router

HERE = Path(__file__).parent
POLICIES = ("nearest", "content")


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


def measure(tasks: list[Task], below: str) -> list[dict[str, object]]:
    """Return, for each wording, the percent that reach their group, and of strangers the base."""
    router = teach(tasks, below)
    strangers = {
        task.name: teach([other for other in tasks if other is not task], below) for task in tasks
    }
    rows: list[dict[str, object]] = []
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


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--train", type=int, default=100)
    parser.add_argument("--test", type=int, default=20)
    arguments = parser.parse_args()
    wordings = json.loads((HERE / "rewordings.json").read_text(encoding="utf-8"))
    tasks = [
        with_rewordings(read_task(path, train=arguments.train, test=arguments.test), wordings)
        for path in sorted(arguments.data.glob("*.json"))
    ]
    rows = [row for below in POLICIES for row in measure(tasks, below)]
    print("| below | wording | own group | never taught: base model |\n| --- | --- | --- | --- |")
    for row in rows:
        print(
            f"| `{row['below']}` | {row['wording']} | {row['own_group_percent']:.1f} | "
            f"{row['strangers_to_base_percent']:.1f} |"
        )
    write_json(
        HERE / "results" / "rewording.json",
        {"tasks": len(tasks), "train": arguments.train, "test": arguments.test, "rows": rows},
    )


if __name__ == "__main__":
    main()
