"""Accuracy of routing on SuperNI: ``python -m benchmarks.routing --data ../shared/data/superni``.

Each task teaches its definition. Prompts are then routed whose instruction is the definition,
its first sentence alone, one of the task's positive examples instead of it, or the definition
behind the input; once with a group a task, once with the tasks dealt into eight groups.
"""

import argparse
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measured import MEASURED, keep
from lcia.grouping import GroupingConfig, InstructionCodebook, InstructionRecipe, Router

VARIANTS = ("definition", "first sentence", "example", "moved")
DEALS = 3
DEALT_GROUPS = 8


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task: what it teaches, variant to what it is asked, and that without an instruction."""

    name: str
    definition: str
    train: list[str]
    test: dict[str, list[str]]
    asked: list[str]


def read_task(path: Path, *, train: int, test: int) -> Task:
    """Read a SuperNI file; the first prompts teach, the last are asked."""
    record = json.loads(path.read_text(encoding="utf-8"))
    definition = "\n".join(record["Definition"]).strip()
    inputs = [instance["input"] for instance in record["Instances"]]
    examples = [
        f"Input: {example['input']}\nOutput: {example['output']}"
        for example in record["Positive Examples"]
    ]
    asked = inputs[-test:]
    frames = {
        "definition": [definition] * test,
        "first sentence": [re.split(r"(?<=[.!?])\s", definition)[0]] * test,
        "example": [examples[n % len(examples)] for n in range(test)],
    }
    prompts = {
        variant: [f"{frame}\n\n{text}" for frame, text in zip(frames[variant], asked, strict=True)]
        for variant in frames
    }
    prompts["moved"] = [f"{text}\n\n{definition}" for text in asked]
    return Task(
        name=path.stem,
        definition=definition,
        train=[f"{definition}\n\n{text}" for text in inputs[: min(train, len(inputs) - test)]],
        test=prompts,
        asked=asked,
    )


def teach(tasks: list[Task], groups: list[int], config: GroupingConfig) -> Router:
    """Return a router whose group ``groups[i]`` learned task i."""
    codebook = InstructionCodebook(config)
    opened: dict[int, str] = {}
    for task, group in zip(tasks, groups, strict=True):
        extraction = InstructionRecipe(kind="field").fit(
            task.train, [task.definition] * len(task.train)
        )
        opened[group] = codebook.add(
            opened.get(group), extraction, task=task.name, prompts=task.train
        )
    return Router(codebook)


def group_accuracy(tasks: list[Task], groups: list[int], router: Router, variant: str) -> float:
    """Return the share of prompts that reach the group of their task, in percent."""
    group_of = {task.name: g.id for g in router.codebook.groups for task in g.tasks}
    hits = [
        router.route(prompt).group == group_of[task.name]
        for task in tasks
        for prompt in task.test[variant]
    ]
    return 100 * float(np.mean(hits))


def own_groups(tasks: list[Task], router: Router, variant: str) -> dict[str, Any]:
    """Return accuracy, confusion and how well an unseen task is told, with a group a task.

    A task is unseen when its own group is left out of the similarities, which is what a codebook
    that never learned it gives.
    """
    name_of = {group.id: group.tasks[0].name for group in router.codebook.groups}
    seen, unseen, confusion = [], [], Counter()
    for task in tasks:
        for prompt in task.test[variant]:
            similarities = {
                name_of[group]: value
                for group, value in router.explain(prompt).similarities.items()
            }
            routed = next(iter(similarities))
            confusion[task.name, routed] += 1
            seen.append(similarities[routed])
            unseen.append(max(v for name, v in similarities.items() if name != task.name))
    wrong = [[*pair, n] for pair, n in confusion.most_common() if pair[0] != pair[1]]
    return {
        "accuracy": 100 * sum(n for (a, b), n in confusion.items() if a == b) / len(seen),
        "confusion": wrong[:8],
        "auroc_unseen": auroc(seen, unseen),
        "sweep": sweep(seen, unseen),
        "seen_quantiles": np.quantile(seen, (0.05, 0.5, 0.95)).tolist(),
        "unseen_quantiles": np.quantile(unseen, (0.05, 0.5, 0.95)).tolist(),
    }


def auroc(seen: list[float], unseen: list[float]) -> float:
    """Return the chance that a seen prompt is more similar than an unseen one; ties count half."""
    a, b = np.array(seen)[:, None], np.array(unseen)[None]
    return float(np.mean((a > b) + 0.5 * (a == b)))


def sweep(seen: list[float], unseen: list[float]) -> list[dict[str, float]]:
    """Return, for each threshold, how often unseen and seen prompts are taken for new."""
    return [
        {
            "threshold": threshold,
            "unseen_new_percent": round(100 * float(np.mean(np.array(unseen) < threshold)), 1),
            "seen_new_percent": round(100 * float(np.mean(np.array(seen) < threshold)), 1),
        }
        for threshold in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    ]


def measure(tasks: list[Task], config: GroupingConfig) -> list[dict[str, Any]]:
    """Return one row a variant for one setting."""
    own = teach(tasks, list(range(len(tasks))), config)
    dealt = []
    for seed in range(DEALS):
        places = np.random.default_rng(seed).permutation(len(tasks)) % DEALT_GROUPS
        dealt.append(places.tolist())
    shared = [teach(tasks, groups, config) for groups in dealt]
    rows = []
    for variant in VARIANTS:
        accuracies = [
            group_accuracy(tasks, groups, router, variant)
            for groups, router in zip(dealt, shared, strict=True)
        ]
        rows.append(
            {
                "similarity": config.similarity,
                "aggregate": config.aggregate,
                "route_on": config.route_on,
                "variant": variant,
                **own_groups(tasks, own, variant),
                "accuracy_dealt": float(np.mean(accuracies)),
            }
        )
    return rows


def main() -> None:
    """Measure, print a Markdown table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/superni"))
    parser.add_argument("--results", type=Path, default=MEASURED)
    parser.add_argument("--similarity", nargs="+", default=["tfidf", "embedding"])
    parser.add_argument("--train", type=int, default=40, help="prompts a task teaches with")
    parser.add_argument("--test", type=int, default=20, help="prompts a task is asked")
    arguments = parser.parse_args()
    tasks = [
        read_task(path, train=arguments.train, test=arguments.test)
        for path in sorted(arguments.data.glob("*.json"))
    ]
    rows = []
    print("similarity | aggregate | route on | variant | group a task | 8 groups | AUROC unseen")
    print("--- | --- | --- | --- | --- | --- | ---")
    for similarity in arguments.similarity:
        for route_on in ("instruction", "prompt", "both"):
            for aggregate in ("best", "mean"):
                config = GroupingConfig(
                    similarity=similarity, aggregate=aggregate, route_on=route_on
                )
                for row in measure(tasks, config):
                    rows.append(row)
                    print(
                        f"{similarity} | {aggregate} | {route_on} | {row['variant']} | "
                        f"{row['accuracy']:.1f} | {row['accuracy_dealt']:.1f} | "
                        f"{row['auroc_unseen']:.3f}",
                        flush=True,
                    )
    result = {"tasks": len(tasks), "train": arguments.train, "test": arguments.test, "rows": rows}
    keep("routing", result, arguments.results)


if __name__ == "__main__":
    main()
