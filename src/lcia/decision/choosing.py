"""Measure what a retrained group may become, on validation samples, and make it the best."""

import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lcia.data.sample import Sample
from lcia.decision.choice import (
    EXPAND,
    HARM,
    TOLD_APART,
    Candidate,
    Choice,
    Measured,
    choose,
    quadratic_scale,
)
from lcia.decision.measuring import LowerLayers, State, Way, measure, put
from lcia.decision.placing import Placed
from lcia.distributed.processes import from_main
from lcia.evaluation.generate import Adapters
from lcia.files import read_json, read_record, write_json
from lcia.grouping import Router, told
from lcia.methods.base import Candidates, Method, TaskContext
from lcia.models.host import AdapterHost
from lcia.store.journal import Journal
from lcia.store.samples import VALIDATION, kept_with
from lcia.store.transaction import Run

logger = logging.getLogger(__name__)

RECORD = "choice.json"
"""What was chosen, in the run's folder."""

ROUND = 8
"""Validation samples a task in each round."""

KEPT = 2
"""Retraining candidates that the first round leaves for the next ones."""

BUDGET = 0.1
"""Share of the training's work up to which further rounds are added.

Work is layers run: a sample of training runs all of them forward, and those with adapters back.
"""

Key = tuple[bool, str | None]
"""One set of parameters: of a candidate (True) by its name, or of a stored group (False)."""


@dataclass(frozen=True)
class Asked:
    """A validation sample, and the group that answers it in each case."""

    task: str
    sample: Sample
    now: str | None
    retrain: str | None
    expand: str | None

    def by_candidate(self, placed: Placed) -> bool:
        """Tell whether a candidate's parameters may answer it."""
        return placed.group == self.retrain or (
            placed.expanded is not None and self.expand == placed.sibling
        )

    def needs(self, placed: Placed, names: Iterable[str], *, task: str) -> tuple[Key, ...]:
        """Return the sets of parameters that may answer it."""
        stored = {self.now} if self.task != task else set()
        stored |= {self.retrain} - {placed.group}
        stored |= {self.expand} - {placed.sibling} if placed.expanded is not None else set()
        keys = [(False, group) for group in sorted(stored, key=str)]
        return (*keys, *((True, name) for name in names if self.by_candidate(placed)))


@dataclass
class Chooser:
    """Chooses once, after training and before the adapter is saved.

    Args:
        host: holds the base model; the adapter that was trained is on it.
        method: names the candidates.
        placed: where the task may go.
        adapters: group to its adapter before the task.
        run: gets ``choice.json``.
        journal: told what was chosen.
    """

    host: AdapterHost
    method: Method
    placed: Placed
    adapters: Adapters
    run: Run
    journal: Journal
    _encoded: dict[int, Any] = field(default_factory=dict)
    _found: dict[Key, Any] = field(default_factory=dict)

    def expects_sibling(self) -> bool:
        """Tell whether the task opens a sibling group unless retraining is shown to be as good."""
        if self.method.config["price"] > HARM:
            return False
        task = self.placed.lesson.name
        return self._comparable(self.asked(task), task=task)

    def _comparable(self, asked: Sequence[Asked], *, task: str) -> bool:
        """Tell whether a sibling is told apart, and all that retraining may harm is measured."""
        if self.placed.expanded is None or self._told_apart(asked) < TOLD_APART:
            return False
        return not self._unmeasured({one.task for one in asked}, task)

    def __call__(self, model: Any, context: TaskContext, *, passes: int) -> TaskContext:
        """Give the parameters the values of the best candidate; return the context it leaves.

        Every process has all parameters and the same ones; the main one measures and tells.

        Args:
            model: in training mode, as it is left.
            context: of the task.
            passes: samples that training ran through, those of each epoch.
        """
        found = self.method.candidates(context)
        if found is None:
            return context
        was_training = model.training
        model.eval()
        choice = from_main(lambda: self._record(self._measure(model, context, found, passes)))
        put(context.parameters, found.states[choice["parameters"]]())
        model.train(was_training)
        if choice["chosen"] != EXPAND:
            return context
        assert self.placed.sibling is not None
        return replace(context, group=self.placed.sibling, reused=False, carried={}, remembered=())

    def _record(self, choice: Choice) -> dict[str, Any]:
        """Write down what was chosen, and return it as JSON."""
        record = asdict(choice)
        write_json(self.run.folder / RECORD, record)
        self.run.record(RECORD)
        self.journal.write("chosen", **record)
        return record

    def _measure(self, model: Any, context: TaskContext, found: Candidates, passes: int) -> Choice:
        """Measure in rounds: the candidates on a few samples, the best on more; then choose."""
        begun = time.monotonic()
        task, asked = context.task.name, self.asked(context.task.name)
        ways, lower = self.ways(model, context, found), LowerLayers(model)

        def work_of(needs: Mapping[int, Sequence[Key]]) -> int:
            return sum(lower.passes(len(keys)) for keys in needs.values())

        def chosen(needs: Mapping[int, Sequence[Key]]) -> Choice:
            """Measure what is needed, and choose among ``names`` by ``rows``."""
            self.measure(model, lower, asked, needs, ways)
            candidates, before = self.candidates(asked, rows, names, found, task=task)
            return choose(
                task,
                candidates,
                before,
                price=self.method.config["price"],
                worst=self.method.config["worst"],
                unmeasured=self._unmeasured(set(before), task),
            )

        names = self._first(asked, found, task=task)
        training = passes * (lower.passes(1) + lower.passes(1) - lower.count)
        queues = _shuffled(asked, seed=context.seed)
        work, rows, table = 0, list[int](), dict[str, Mapping[str, Any]]()
        choice = None
        for number in count():
            more = [i for queue in queues for i in queue[number * ROUND : (number + 1) * ROUND]]
            needs = self._needs(asked, more, names, task=task)
            if choice is not None and (not more or work + work_of(needs) > BUDGET * training):
                break
            work, rows = work + work_of(needs), [*rows, *more]
            choice = chosen(needs)
            table |= {row["name"]: row for row in choice.table}
            names = [name for name in names if name in choice.best(KEPT)]
        assert choice is not None
        if choice.harms and not found.states.keys() <= table.keys():
            names = [*found.states]  # what else retraining might end as
            needs = self._needs(asked, rows, names, task=task)
            work, choice = work + work_of(needs), chosen(needs)
            table = {row["name"]: row for row in choice.table}
        put(context.parameters, found.states["trained"]())
        return replace(
            choice,
            table=tuple(table.values()),
            work=round(work / max(1, training), 4),
            seconds=round(time.monotonic() - begun, 2),
        )

    def _first(self, asked: Sequence[Asked], found: Candidates, *, task: str) -> list[str]:
        """Return the candidates that are measured first.

        Where a sibling may be opened the question is whether retraining is as good: plainly, for
        every further candidate is a further chance to be lucky. Else it is what retraining ends as.
        """
        plainly = self.method.config["price"] < 1 and self._comparable(asked, task=task)
        return ["trained"] if plainly else [*found.states]

    def _needs(
        self, asked: Sequence[Asked], rows: Iterable[int], names: Iterable[str], *, task: str
    ) -> dict[int, tuple[Key, ...]]:
        """Return the sets of parameters that samples, given by their place, still need."""

        def known(key: Key, row: int) -> bool:
            return key in self._found and not np.isnan(self._found[key][0, row])

        return {
            i: tuple(
                key for key in asked[i].needs(self.placed, names, task=task) if not known(key, i)
            )
            for i in rows
        }

    def asked(self, task: str) -> list[Asked]:
        """Return the validation samples of all tasks whose answers may change, and their routes."""
        placed = self.placed
        groups = [placed.group, *placed.joined.siblings(placed.group)]
        folders = [self.adapters[group][1] for group in groups if group in self.adapters]
        kept = [pair for folder in folders for pair in kept_with(folder, VALIDATION)]
        known = [(name or "", sample) for sample, name in kept]
        found = self.routed([*known, *((task, sample) for sample in placed.held)])
        changed = {
            one.task
            for one in found
            if one.by_candidate(placed) or len({one.now, one.retrain, one.expand}) > 1
        }
        return [one for one in found if one.task in changed | {task}]

    def routed(self, pairs: Iterable[tuple[str, Sample]]) -> list[Asked]:
        """Return samples, given with their tasks, each with where it goes in each case."""
        placed = self.placed
        routers = {
            "now": Router(placed.now),
            "retrain": Router(placed.joined),
            "expand": Router(placed.expanded or placed.joined),
        }

        def groups_of(sample: Sample) -> dict[str, str | None]:
            said = told(sample.messages)
            return {way: router.route(said).group for way, router in routers.items()}

        return [Asked(name, sample, **groups_of(sample)) for name, sample in pairs]

    def ways(self, model: Any, context: TaskContext, found: Candidates) -> dict[Key, Way]:
        """Return all sets of parameters that may be measured."""
        ways: dict[Key, Way] = {(True, name): Way(state) for name, state in found.states.items()}
        for group in (None, *self.adapters):
            state = partial(self._stored, model, context, group)
            ways[False, group] = Way(_once(state), plain=group is None)
        return ways

    def _stored(self, model: Any, context: TaskContext, group: str | None) -> State:
        """Return the values of a stored group's adapter; of the base model for None."""
        if group is not None:
            load_values(self.host, model, self.adapters[group][1])
        elif self.host.projector is not None:
            self.host.projector.load(None)
        return {name: values.detach().clone() for name, values in context.parameters.items()}

    def measure(
        self,
        model: Any,
        lower: LowerLayers,
        asked: Sequence[Asked],
        needs: Mapping[int, Sequence[Key]],
        ways: Mapping[Key, Way],
    ) -> None:
        """Measure samples, given by their place, under the sets of parameters that each needs."""
        alike: dict[Sequence[Key], list[int]] = {}
        for i, keys in needs.items():
            if keys:
                alike.setdefault(keys, []).append(i)
            if i not in self._encoded:
                self._encoded[i] = self.host.chat.encode_example(asked[i].sample)
        for keys, rows in alike.items():
            measured = measure(
                self.host,
                model,
                lower,
                examples=[self._encoded[i] for i in rows],
                ways=[ways[key] for key in keys],
            )
            for key, one in zip(keys, measured, strict=True):
                values = self._found.setdefault(key, np.full((2, len(asked)), np.nan))
                values[:, rows] = one.losses, one.given

    def candidates(
        self,
        asked: Sequence[Asked],
        rows: Iterable[int],
        names: Sequence[str],
        found: Candidates,
        *,
        task: str,
    ) -> tuple[list[Candidate], dict[str, Measured]]:
        """Return candidates with what was measured on the rows, and what was before them."""
        placed, by_task = self.placed, dict[str, list[int]]()
        for i in rows:
            by_task.setdefault(asked[i].task, []).append(i)

        def measured(name: str, way: str, own: str | None) -> dict[str, Measured]:
            result = {}
            for known, places in by_task.items():
                if way == "now" and known == task:
                    continue  # nobody asks what the new task's answers were
                routes = [(i, getattr(asked[i], way)) for i in places]
                keys = [(i, (True, name) if to == own else (False, to)) for i, to in routes]
                losses, given = np.array([self._found[key][:, i] for i, key in keys]).T
                result[known] = Measured(losses=losses, given=given)
            return result

        candidates = [
            Candidate(name=name, measured=measured(name, "retrain", placed.group)) for name in names
        ]
        before = measured("", "now", "")
        if unmeasured := self._unmeasured(set(before), task):
            estimates = self._estimates(found, candidates, task, unmeasured)
            candidates = [replace(c, estimate=estimates.get(c.name, 0.0)) for c in candidates]
        if placed.expanded is not None:
            candidates.append(
                Candidate(
                    name=EXPAND,
                    measured=measured("trained", "expand", placed.sibling),
                    told_apart=self._told_apart(asked),
                    parameters="trained",
                )
            )
        return candidates, before

    def _unmeasured(self, sampled: set[str], task: str) -> int:
        tasks = {known.name for known in self.placed.now.group(self.placed.group).tasks}
        return len(tasks - sampled - {task})

    def _estimates(
        self, found: Candidates, candidates: Sequence[Candidate], task: str, unmeasured: int
    ) -> dict[str, float]:
        """Return candidate to the estimated fall of an earlier task's quality, by its precision."""
        distances = found.distances()
        quality = {c.name: float(c.measured[task].quality.mean()) for c in candidates}
        names = [name for name in distances if name in quality]
        if not names:
            return {}
        scale = quadratic_scale(
            np.array([max(quality.values()) - quality[name] for name in names]),
            np.array([distances[name][1] for name in names]),
        )
        tasks = len(self.placed.now.group(self.placed.group).tasks)
        return {name: scale * distances[name][0] / tasks for name in names}

    def _told_apart(self, asked: Sequence[Asked]) -> float:
        """Return the smallest share, over tasks, of samples that a sibling or its group gets."""
        places: dict[str, list[str | None]] = {}
        for one in asked:
            places.setdefault(one.task, []).append(one.expand)
        shares = [
            sum(group == home for group in groups) / len(groups)
            for task, groups in places.items()
            if (home := self._home(task)) is not None
        ]
        return min(shares, default=1.0)

    def _home(self, task: str) -> str | None:
        """Return the sibling for the new task, the group for its own; None for others' tasks."""
        placed = self.placed
        if task in {known.name for known in placed.now.group(placed.group).tasks}:
            return placed.group
        assert placed.expanded is not None and placed.sibling is not None
        mine = {known.name for known in placed.expanded.group(placed.sibling).tasks}
        return placed.sibling if task in mine else None


def read_choice(run: Run) -> dict[str, Any] | None:
    """Return what was chosen in a run; None where nothing was."""
    return dict(read_record(run.folder / RECORD)) if run.holds(RECORD) else None


def of_one_shape(adapters: Adapters) -> bool:
    """Tell whether all groups' adapters are alike but for their values: one takes another's."""
    shapes = set()
    for _, folder in adapters.values():
        config = read_json(folder / "adapter_config.json")
        modules = sorted(config["target_modules"])
        shapes.add(str([config["r"], config["rank_pattern"], modules]))
    if len(shapes) > 1:
        logger.warning(
            "the groups' adapters differ in rank or modules, so what a retrained group becomes is "
            "not measured: the average is merged."
        )
    return len(shapes) < 2


@torch.no_grad()
def load_values(host: AdapterHost, model: Any, folder: Path) -> None:
    """Give the adapter on the model, and the projector, the values of a stored one, in place.

    Another adapter beside it would need a name of its own, and be saved by Trainer.
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    weights = load_peft_weights(str(folder), device="cpu")
    set_peft_model_state_dict(model, weights, adapter_name=model.active_adapter)
    if host.projector is not None:
        host.projector.load(folder)


def _shuffled(asked: Sequence[Asked], *, seed: int) -> list[list[int]]:
    """Return the places of each task's samples, in an order drawn by seed."""
    queues: dict[str, list[int]] = {}
    for i, one in enumerate(asked):
        queues.setdefault(one.task, []).append(i)
    for task, queue in queues.items():
        random.Random(f"choice {seed} {task}").shuffle(queue)
    return list(queues.values())


def _once(state: Callable[[], State]) -> Callable[[], State]:
    """Return what gives a state that is computed when it is first asked for."""
    kept: list[State] = []

    def given() -> State:
        if not kept:
            kept.append(state())
        return kept[0]

    return given
