"""Measure what a retrained group may become, on validation samples, and make it the best."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor

from lcia.data.sample import Sample
from lcia.decision.choice import EXPAND, Candidate, Choice, Losses, choose, quadratic_scale
from lcia.decision.placing import Placed
from lcia.distributed.processes import from_main
from lcia.evaluation.generate import Adapters
from lcia.files import read_json, read_record, write_json
from lcia.grouping import Router, told
from lcia.methods.base import Candidates, Method, TaskContext
from lcia.models.batches import IGNORED
from lcia.models.host import AdapterHost
from lcia.store.journal import Journal
from lcia.store.samples import VALIDATION, kept_with
from lcia.store.transaction import Run

logger = logging.getLogger(__name__)

RECORD = "choice.json"
"""What was chosen, in the run's folder."""

BATCH = 16
"""Validation samples scored at once: answers are short, and nothing is kept for gradients."""


@dataclass(frozen=True)
class _Asked:
    """A validation sample, and the group that answers it in each case."""

    task: str
    sample: Sample
    now: str | None
    retrain: str | None
    expand: str | None

    def stored(self, placed: Placed, task: str) -> set[str | None]:
        """Return the groups whose adapter of before the task may answer the sample."""
        found = {self.now} if self.task != task else set()
        found |= {self.retrain} - {placed.group}
        return found | ({self.expand} - {placed.sibling} if placed.expanded is not None else set())

    def by_candidate(self, placed: Placed) -> bool:
        """Tell whether a candidate's parameters may answer it."""
        return placed.group == self.retrain or (
            placed.expanded is not None and self.expand == placed.sibling
        )


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

    def __call__(self, model: Any, context: TaskContext) -> TaskContext:
        """Give the parameters the values of the best candidate; return the context it leaves.

        Every process has all parameters and the same ones; the main one measures and tells.
        """
        found = self.method.candidates(context)
        if found is None:
            return context
        was_training = model.training
        model.eval()
        choice = from_main(lambda: self._record(self._measure(model, context, found)))
        _put(context, found.states[choice["parameters"]]())
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

    def _measure(self, model: Any, context: TaskContext, found: Candidates) -> Choice:
        begun = time.monotonic()
        placed, task, states = self.placed, context.task.name, found.states
        trained = states["trained"]()
        asked = self._asked(task)
        stored: dict[str | None, Losses] = {}
        for group in sorted({g for a in asked for g in a.stored(placed, task)}, key=str):
            wanted = [i for i, a in enumerate(asked) if group in a.stored(placed, task)]
            stored[group] = self._of_group(model, group, asked, wanted)
        losses: dict[str, Losses] = {}
        wanted = [i for i, a in enumerate(asked) if a.by_candidate(placed)]
        for name, state in states.items():
            _put(context, state())
            losses[name] = self._score(model, asked, wanted)
        _put(context, trained)
        before = {
            name: np.array([stored[asked[i].now][i] for i in rows])
            for name, rows in _rows(asked).items()
            if name != task
        }
        unmeasured = self._unmeasured(set(before), task)
        estimates = self._estimates(found, losses, asked, task, unmeasured)
        candidates = [
            replace(
                self._candidate(name, asked, {**stored, placed.group: own}, "retrain"),
                estimate=estimates.get(name, 0.0),
            )
            for name, own in losses.items()
        ]
        if placed.expanded is not None:
            rows = [i for i, a in enumerate(asked) if a.expand == placed.sibling]
            best = min(losses, key=lambda name: losses[name][rows].sum())
            by = {**stored, placed.sibling: losses[best]}
            sibling = self._candidate(EXPAND, asked, by, "expand")
            candidates.append(replace(sibling, parameters=best))
        return choose(
            task,
            candidates,
            before,
            price=self.method.config["price"],
            worst=self.method.config["worst"],
            unmeasured=unmeasured,
            seconds=round(time.monotonic() - begun, 2),
        )

    def _asked(self, task: str) -> list[_Asked]:
        """Return all validation samples concerned, each with where it goes in each case."""
        placed = self.placed
        groups = [placed.group, *placed.joined.siblings(placed.group)]
        folders = [self.adapters[group][1] for group in groups if group in self.adapters]
        kept = [pair for folder in folders for pair in kept_with(folder, VALIDATION)]
        known = [(name or "", sample) for sample, name in kept]
        routers = {
            "now": Router(placed.now),
            "retrain": Router(placed.joined),
            "expand": Router(placed.expanded or placed.joined),
        }

        def groups_of(sample: Sample) -> dict[str, str | None]:
            said = told(sample.messages)
            return {way: router.route(said).group for way, router in routers.items()}

        pairs = [*known, *((task, sample) for sample in self.placed.held)]
        return [_Asked(name, sample, **groups_of(sample)) for name, sample in pairs]

    def _unmeasured(self, sampled: set[str], task: str) -> int:
        tasks = {known.name for known in self.placed.now.group(self.placed.group).tasks}
        return len(tasks - sampled - {task})

    def _estimates(
        self,
        found: Candidates,
        own: Mapping[str, Losses],
        asked: Sequence[_Asked],
        task: str,
        unmeasured: int,
    ) -> dict[str, float]:
        """Return candidate to the estimated rise of an earlier task's loss, from its precision."""
        distances = found.distances() if unmeasured else {}
        if not distances:
            return {}
        rows = _rows(asked)[task]
        rows = [i for i in rows if np.isfinite(own["trained"][i])]
        if not rows:  # all of the task's prompts are routed elsewhere
            return {}
        means = {name: float(values[rows].mean()) for name, values in own.items()}
        names = list(distances)
        scale = quadratic_scale(
            np.array([means[name] - means["trained"] for name in names]),
            np.array([distances[name][1] for name in names]),
        )
        tasks = len(self.placed.now.group(self.placed.group).tasks)
        return {name: scale * distances[name][0] / tasks for name in names}

    def _candidate(
        self, name: str, asked: Sequence[_Asked], by: Mapping[str | None, Losses], way: str
    ) -> Candidate:
        losses, shares = {}, []
        for task, rows in _rows(asked).items():
            routes = [getattr(asked[i], way) for i in rows]
            losses[task] = np.array([by[group][i] for group, i in zip(routes, rows, strict=True)])
            if way == "expand" and (home := self._home(task)) is not None:
                shares.append(sum(group == home for group in routes) / len(rows))
        return Candidate(name=name, losses=losses, told_apart=min(shares, default=1.0))

    def _home(self, task: str) -> str | None:
        """Return the sibling for the new task, the group for its own; None for others' tasks."""
        placed = self.placed
        if task in {known.name for known in placed.now.group(placed.group).tasks}:
            return placed.group
        assert placed.expanded is not None and placed.sibling is not None
        mine = {known.name for known in placed.expanded.group(placed.sibling).tasks}
        return placed.sibling if task in mine else None

    def _of_group(
        self, model: Any, group: str | None, asked: Sequence[_Asked], wanted: Sequence[int]
    ) -> Losses:
        """Return the losses of samples by a stored adapter; None is the base model."""
        if group is not None:
            load_values(self.host, model, self.adapters[group][1])
            return self._score(model, asked, wanted)
        if self.host.projector is not None:
            self.host.projector.load(None)
        with model.disable_adapter():
            return self._score(model, asked, wanted)

    def _score(self, model: Any, asked: Sequence[_Asked], wanted: Sequence[int]) -> Losses:
        """Return the loss of the wanted samples; the others are not a number."""
        for i in wanted:
            if i not in self._encoded:
                self._encoded[i] = self.host.chat.encode_example(asked[i].sample)
        found = np.full(len(asked), np.nan)
        if wanted:
            found[list(wanted)] = sample_losses(
                self.host, model, [self._encoded[i] for i in wanted]
            )
        return found


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


@torch.no_grad()
def sample_losses(host: AdapterHost, model: Any, examples: Sequence[Any]) -> Losses:
    """Return each example's mean loss over its answer tokens, in nats, shape (examples,).

    Batches are of similar length, so the same examples give the same numbers.
    """
    found = np.zeros(len(examples))
    order = sorted(range(len(examples)), key=lambda i: (_length(examples[i]), i))
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        batch = send_to_device(
            host.chat.collate([examples[i] for i in rows]), host.base.model.device
        )
        logits, labels = model(**batch).logits, batch["labels"]
        if not host.chat.facts.encoder_decoder:
            logits, labels = logits[:, :-1], labels[:, 1:]
        losses = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
        ).view(labels.shape)
        counted = (labels != IGNORED).sum(dim=1).clamp(min=1)
        found[rows] = (losses.sum(dim=1) / counted).double().cpu().numpy()
    return found


def _length(example: Any) -> int:
    return len(getattr(example, "prompt_ids", ())) + len(example.answer_ids)


@torch.no_grad()
def _put(context: TaskContext, state: Mapping[str, Tensor]) -> None:
    for name, values in state.items():
        context.parameters[name].copy_(values)


def _rows(asked: Iterable[_Asked]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for i, one in enumerate(asked):
        rows.setdefault(one.task, []).append(i)
    return rows
