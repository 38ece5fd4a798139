"""What every candidate of every measured choice would have given on test, after the choice.

    python -m benchmarks.choices STREAM.yaml --set "methods=[{name: lcia, validation: 0.1}]"
    python -m benchmarks.choices --table
    python -m benchmarks.choices --rules OUTPUT/choices.jsonl ...

The first learns a stream as ``lcia run`` does. Behind each choice, all candidates answer all
validation and test samples of the tasks concerned, by teacher forcing: greedy decoding gives a
whole answer exactly where every token of it is the likeliest. Nothing of that reaches the choice.
One record a choice goes to ``choices.jsonl`` in the stream's output, by sample, and a summary to
``benchmarks.measured``. The second prints summaries as docs/study.md has them. The third says what
other rules would have chosen: from all samples of a record, validation and test, some are drawn to
choose by, and the others score what was chosen; so many times, for one draw is one accident.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks.measured import MEASURED, keep, kept
from lcia.config import load_stream_config
from lcia.data.sample import Task
from lcia.decision.choice import (
    DOUBT,
    EXPAND,
    HARM,
    Candidate,
    Choice,
    Measured,
    choose,
    difference_error,
)
from lcia.decision.choosing import Chooser
from lcia.decision.measuring import LowerLayers
from lcia.experiments.running import output_folder, run_experiment, stream_tasks
from lcia.files import read_jsonl
from lcia.learner import ContinualLearner
from lcia.methods.lcia import Lcia


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
        best, lost = regret(one)
        cells = [
            f"{name}: {_score(one, name)} → {_points(tasks)}"
            for name, tasks in one["test"].items()
            if name in one["score"] or name == best
        ]
        regrets.append((one["chosen"] == best, lost))
        costs.append(one["work"])
        where = f"{one['stream']}, {one['run']}, `{one['task']}`"
        row = [where, _points(one["before"]), "<br>".join(cells), one["chosen"], best]
        lines.append(f"| {' | '.join(row)} | {lost:.1f} |")
    if regrets:
        agreed, points = map(list, zip(*regrets, strict=True))
        lines += [
            "",
            f"Validation chose what test would have in {sum(agreed)} of {len(agreed)} choices; "
            f"regret {np.mean(points):.2f} points on average, {max(points):.1f} at most. Measuring "
            f"took {100 * np.mean(costs):.0f} % of the training's work on average, "
            f"{100 * max(costs):.0f} % at most.",
        ]
    return "\n".join(lines)


PRICE = float(Lcia.settings["price"])
"""The default price of a group."""

DRAWS = 100
"""Times that samples are drawn anew."""

Decide = Callable[[str, Sequence[Candidate], Mapping[str, Measured]], str]
"""Returns the name of the chosen candidate: of a task, candidates and what was before."""


def by_choice(*, price: float = PRICE, among: Sequence[str] = ()) -> Decide:
    """Return the rule in force, at a price, with all candidates or some."""

    def decide(task: str, candidates: Sequence[Candidate], before: Mapping[str, Measured]) -> str:
        taken = [c for c in candidates if not among or c.name in among]
        return choose(task, taken, before, price=price).chosen

    return decide


def fewer_groups(task: str, candidates: Sequence[Candidate], before: Mapping[str, Measured]) -> str:
    """Return what was chosen until 28 November 2026: a tie keeps the group."""
    choice = choose(task, list(candidates), before, price=1)
    rows = {row["name"]: row for row in choice.table}
    named = {c.name: c for c in candidates}
    gain = rows[EXPAND]["score"] - rows[choice.chosen]["score"]
    noise = difference_error(named[choice.chosen], named[EXPAND], unmeasured=0, unseen=0)
    least = PRICE - HARM if choice.harms else PRICE + DOUBT * noise
    return EXPAND if not rows[EXPAND]["harmed"] and gain > least else choice.chosen


RULES: Mapping[str, Decide] = {
    "never a sibling": by_choice(price=1),
    "ties keep the group, all candidates": fewer_groups,
    "retraining has to be shown, all candidates": by_choice(),
    "retraining has to be shown, plainly: the default": by_choice(among=("trained", EXPAND)),
    "always a sibling": lambda task, candidates, before: EXPAND,
}


def redrawn(records: Iterable[Mapping[str, Any]], decide: Decide, samples: int) -> dict[str, float]:
    """Return what a rule would have given, on average over choices and draws, in points.

    Args:
        records: of choices between retraining and a sibling.
        decide: the rule.
        samples: validation samples a task, drawn from all that were answered; the others test.
    """
    drawn, outcomes = random.Random(0), list[list[float]]()
    for record in records:
        task, found = record["task"], dict[str, dict[str, Any]]()
        for name, tasks in record["test"].items():
            parts = {t: (record["validation"][name][t], of) for t, of in tasks.items()}
            found[name] = {t: np.concatenate(part, axis=1) for t, part in parts.items()}
        names = [name for name in found if name != "before"]
        sizes = {t: of.shape[1] for t, of in found["trained"].items()}
        for _ in range(DRAWS):
            rows = {t: drawn.sample(range(size), samples) for t, size in sizes.items()}
            measured = {
                name: {
                    t: Measured(losses=of[0, rows[t]], given=of[1, rows[t]])
                    for t, of in tasks.items()
                }
                for name, tasks in found.items()
            }
            before = {t: of for t, of in measured["before"].items() if t != task}
            candidates = [Candidate(name=name, measured=measured[name]) for name in names]
            chosen = decide(task, candidates, before)
            rest = {t: np.delete(np.arange(size), rows[t]) for t, size in sizes.items()}
            test = {
                name: {t: 100 * float((of[1, rest[t]] >= 1).mean()) for t, of in tasks.items()}
                for name, tasks in found.items()
            }
            means = {name: float(np.mean(list(test[name].values()))) for name in names}
            falls = [test["before"][t] - test[chosen][t] for t in before]
            outcomes.append(
                [
                    means[chosen],
                    max(means.values()) - means[chosen],
                    float(np.mean(falls)),
                    test[chosen][task],
                    100 * float(chosen == EXPAND),
                ]
            )
    keys = ("accuracy", "regret", "forgotten", "new", "siblings")
    return dict(zip(keys, np.mean(outcomes, axis=0).round(2).tolist(), strict=True))


def rules_table(paths: Sequence[Path], samples: Sequence[int] = (4, 8, 12)) -> str:
    """Return what each rule would have given, as Markdown."""
    records = [record for path in paths for record in read_jsonl(path)]
    records = [record for record in records if EXPAND in record["test"]]
    lines = [
        f"{len(records)} choices, {DRAWS} draws each.",
        "",
        "| rule | samples | accuracy | regret | forgotten | new task | siblings |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, decide in RULES.items():
        for count in samples if decide is not RULES["always a sibling"] else samples[:1]:
            one = redrawn(records, decide, count)
            cells = [one[key] for key in ("accuracy", "regret", "forgotten", "new")]
            points = " | ".join(f"{value:.1f}" for value in cells)
            lines.append(f"| {name} | {count} | {points} | {one['siblings']:.0f} % |")
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
    parser.add_argument("--rules", type=Path, nargs="+", help="records to try other rules on")
    given = parser.parse_args()
    if given.rules:
        print(rules_table(given.rules))
        return
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
