"""What every candidate of every measured choice would have given on test, after the choice.

    python -m benchmarks.choices STREAM.yaml --set "methods=[{name: lcia, validation: 0.1}]"
    python -m benchmarks.choices --table

The first learns a stream as ``lcia run`` does. Behind each choice, all candidates answer all
validation and test samples of the tasks concerned, by teacher forcing: greedy decoding gives a
whole answer exactly where every token of it is the likeliest. Nothing of that reaches the choice.
One record a choice goes to ``choices.jsonl`` in the stream's output, by sample, and a summary to
``benchmarks.measured``. The second prints summaries as docs/study.md has them.
"""

import argparse
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks.measured import MEASURED, keep, kept
from lcia.config import load_stream_config
from lcia.data.sample import Task
from lcia.decision.choice import Choice, Measured
from lcia.decision.choosing import Chooser
from lcia.decision.measuring import LowerLayers
from lcia.experiments.running import output_folder, run_experiment, stream_tasks
from lcia.files import read_jsonl
from lcia.learner import ContinualLearner


@dataclass
class Recording(Chooser):
    """A chooser that then measures everything on everything, and writes it down."""

    tasks: ClassVar[Mapping[str, Task]]
    path: ClassVar[Path]

    def __post_init__(self) -> None:
        self._begun = time.process_time()
        self._resumed = (self.run.folder / "checkpoints").exists()

    def _measure(self, model: Any, context: Any, found: Any, passes: int) -> Choice:
        begun = time.process_time()
        choice = super()._measure(model, context, found, passes)
        ended = time.process_time()
        task = context.task.name
        record = {
            "run": self.run.folder.parents[2].name,
            "task": task,
            "group": self.placed.group,
            "choice": asdict(choice),
            "training_s": None if self._resumed else round(begun - self._begun, 2),
            "choosing_s": round(ended - begun, 2),
        }
        held = [(one.task, one.sample) for one in self.asked(task)]
        concerned = dict.fromkeys(name for name, _ in held)
        if not set(self._earlier()) <= set(concerned):  # nothing of them is kept
            concerned = dict.fromkeys([*self._earlier(), task])
        test = [(name, sample) for name in concerned for sample in self.tasks[name].test]
        for kind, pairs in (("validation", held), ("test", test)):
            record[kind] = self._everything(model, context, found, pairs)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        return choice

    def _earlier(self) -> list[str]:
        return [known.name for known in self.placed.now.group(self.placed.group).tasks]

    def _everything(
        self, model: Any, context: Any, found: Any, pairs: Sequence[tuple[str, Any]]
    ) -> dict[str, dict[str, list[Any]]]:
        """Return candidate to task to (loss, share given) of each sample."""
        other = replace(self, _encoded={}, _found={})
        task, names = context.task.name, list(found.states)
        asked = other.routed(pairs)
        needs = {i: one.needs(self.placed, names, task=task) for i, one in enumerate(asked)}
        ways = other.ways(model, context, found)
        other.measure(model, LowerLayers(model), asked, needs, ways)
        rows = range(len(asked))
        result: dict[str, Mapping[str, Measured]] = {}
        for name in names:
            candidates, before = other.candidates(asked, rows, [name], found, task=task)
            result["before"] = before
            result |= {one.name: one.measured for one in candidates}
        return {
            name: {t: np.round([m.losses, m.given], 5).tolist() for t, m in measured.items()}
            for name, measured in result.items()
        }


def percent(values: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, float]:
    """Return task to the share of whole answers, in percent."""
    return {t: round(100 * float(np.mean(np.array(v[1]) >= 1)), 4) for t, v in values.items()}


def summary(record: Mapping[str, Any], stream: str) -> dict[str, Any]:
    """Return what is committed of a record: no sample of its own."""
    choice = record["choice"]
    before = record["test"]["before"]
    return {
        "stream": stream,
        "run": record["run"],
        "task": record["task"],
        "group": record["group"],
        "chosen": choice["chosen"],
        "why": choice["why"],
        "samples": choice["samples"],
        "before": percent({t: before[t] for t in before if t != record["task"]}),
        "test": {name: percent(of) for name, of in record["test"].items() if name != "before"},
        "score": {row["name"]: row["score"] for row in choice["table"]},
        "harmed": {row["name"]: row["harmed"] for row in choice["table"]},
        "work": choice["work"],
        "training_s": record["training_s"],
        "choosing_s": record["choosing_s"],
    }


def regret(one: Mapping[str, Any]) -> tuple[str, float]:
    """Return what test would have chosen, and by how many points it is better on average."""
    means = {name: float(np.mean(list(tasks.values()))) for name, tasks in one["test"].items()}
    best = max(means, key=lambda name: means[name])
    if means[best] - means[one["chosen"]] < 0.01:  # a rounding
        best = one["chosen"]
    return best, means[best] - means[one["chosen"]]


def table(summaries: Iterable[Mapping[str, Any]]) -> str:
    """Return the decision table as Markdown, and how good the choices were."""
    lines = [
        "| stream, run, task | earlier tasks before | candidate: validation score → test score of "
        "each task, in percent | chosen | by test | regret |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    regrets, costs = [], []
    for one in summaries:
        cells = [
            f"{name}: {_score(one, name)} → {_points(tasks)}" for name, tasks in one["test"].items()
        ]
        best, lost = regret(one)
        regrets.append((one["chosen"] == best, lost))
        costs.append(one["work"])
        where = f"{one['stream']}, {one['run']}, `{one['task']}`"
        row = [where, _points(one["before"]), "<br>".join(cells), one["chosen"], best]
        lines.append(f"| {' | '.join(row)} | {lost:.1f} |")
    if regrets:
        agreed, lost = map(list, zip(*regrets, strict=True))
        lines += [
            "",
            f"Validation chose what test would have in {sum(agreed)} of {len(agreed)} choices; "
            f"regret {np.mean(lost):.2f} points on average, {max(lost):.1f} at most. Measuring "
            f"took {100 * np.mean(costs):.0f} % of the training's work on average, "
            f"{100 * max(costs):.0f} % at most.",
        ]
    return "\n".join(lines)


def _score(one: Mapping[str, Any], name: str) -> str:
    """Return a candidate's validation score in percent; a dash where the choice did not need it."""
    return f"{100 * one['score'][name]:.1f}" if name in one["score"] else "–"


def _points(tasks: Mapping[str, float]) -> str:
    return " / ".join(f"{value:.0f}" for value in tasks.values())


def main() -> None:
    """Learn a stream with its choices recorded, or print what was recorded."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("stream", type=Path, nargs="?", help="a stream file")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--name", help="of the stream in the summary; default: its file's")
    parser.add_argument("--results", type=Path, default=MEASURED)
    parser.add_argument("--table", action="store_true", help="print the summary")
    given = parser.parse_args()
    if given.stream is not None:
        config = load_stream_config(given.stream, given.overrides)
        base = given.stream.parent
        folder = output_folder(config, base=base)
        folder.mkdir(parents=True, exist_ok=True)
        Recording.tasks = {task.name: task for task in stream_tasks(config, base=base)}
        Recording.path = folder / "choices.jsonl"
        ContinualLearner.chooser = Recording
        experiment = run_experiment(
            config, base=base, finished=lambda result: print(result, flush=True)
        )
        for name, error in experiment.failures.items():
            print(f"{name}: {error}")
        name = given.name or given.stream.stem
        made = [summary(record, name) for record in read_jsonl(Recording.path)]
        keys = {(one["stream"], one["run"], one["task"]) for one in made}
        others = [
            one
            for one in kept("choices", given.results) or []
            if (one["stream"], one["run"], one["task"]) not in keys
        ]
        keep("choices", [*others, *made], given.results)
    if given.table or given.stream is None:
        print(table(kept("choices", given.results) or []))


if __name__ == "__main__":
    main()
