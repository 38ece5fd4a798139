"""Continual learning: one task as a transaction, a stream as one task after another."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from lcia.config import AssistantConfig
from lcia.data.task import Task
from lcia.errors import GateError, ModelError, StoreError
from lcia.evaluation.generate import Prediction, evaluate, scores_percent
from lcia.evaluation.metrics import summarise
from lcia.grouping import InstructionCodebook, InstructionRecipe, RouteDecision, Router
from lcia.learner.environment import environment
from lcia.learner.files import read_json, read_jsonl, write_json, write_jsonl
from lcia.learner.gate import check_gate
from lcia.learner.journal import Journal, Listener
from lcia.learner.store import Store, Version, remove
from lcia.learner.training import train_adapter
from lcia.models.host import AdapterHost
from lcia.models.loading import check_model, content_hash, load_model


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What learning a task led to.

    Attributes:
        task: its name.
        version: the version that holds it, now current.
        group: the adapter group that learned it.
        reason: ``reuse``, ``expand`` or ``first_group``.
        similarity: of the most similar group before, in [0, 1].
        score_base: the base model's score on the task, in percent.
        score_before: the assistant's score on it before learning, in percent.
        scores: task to score after learning, in percent, all tasks learned so far.
        seconds: time it took.
    """

    task: str
    version: int
    group: str
    reason: str
    similarity: float
    score_base: float | None
    score_before: float | None
    scores: Mapping[str, float]
    seconds: float


class ContinualLearner:
    """Teaches an assistant one task after another.

    Args:
        store: the assistant's directory.
        host: its base model in memory; None loads it when first needed.
        listener: told every event: what is being done, each step, each score.
    """

    def __init__(
        self, store: Store, *, host: AdapterHost | None = None, listener: Listener | None = None
    ) -> None:
        self.store = store
        self.config = store.config
        self.listener = listener
        self._host = host
        self._processes = PartialState()

    @classmethod
    def create(
        cls, root: str | Path, config: AssistantConfig, **options: Any
    ) -> "ContinualLearner":
        """Make an empty assistant at ``root`` after checking its configuration and model.

        Raises:
            ConfigError: an unknown setting.
            ModelError: the model does not exist.
            StoreError: ``root`` is not empty.
        """
        config.check()
        check_model(config.model)
        store = Store.create(root, config, content_hash=content_hash(config.model))
        return cls(store, **options)

    @property
    def host(self) -> AdapterHost:
        """The base model in memory.

        Raises:
            ModelError: it cannot be loaded, or its files changed since the assistant was made.
        """
        if self._host is None:
            self._host = load_host(self.config)
            if content_hash(self.config.model) != self.store.content_hash:
                raise ModelError(
                    f"model: the files of '{self.config.model}' changed since {self.store.root} "
                    "was made; its adapters belong to the earlier ones. Put those back, or make "
                    "a new assistant."
                )
        return self._host

    def learn(self, task: Task) -> Outcome:
        """Learn one task: group, train, evaluate all tasks, gate, commit.

        A transaction: the new version appears as a whole or not at all. Calling it again after
        it was killed continues where it was, with the same result to the bit; calling it again
        after it succeeded returns the same outcome.

        Args:
            task: a task the assistant has not learned.

        Raises:
            StoreError: the name was used for other data, another task is unfinished, or another
                process is learning.
            GateError: the new version lost more than ``gate.max_drop``; nothing was changed.
            TrainingError: training failed; calling again resumes it.
        """
        with self.store.writing():
            version = self.store.current
            if done := self._learned(task, version):
                return done
            start = time.monotonic()
            run, plan = self._begin(task, version)
            journal = Journal(run / "journal.jsonl", self.listener)

            codebook = version.codebook()
            extraction = InstructionRecipe.parse(task.instruction).fit(
                [sample.prompt for sample in task.train],
                [sample.instruction for sample in task.train],
            )
            decision = codebook.decide(extraction.instructions)
            group = codebook.add(decision.group, extraction, task=task.name)
            journal.write(
                "grouped",
                task=task.name,
                group=group,
                reason=decision.reason,
                similarity=decision.similarity,
                similarities=dict(decision.similarities),
                instructions=list(extraction.instructions)[:5],
            )

            before = self._score_before(task, version, folder=run, journal=journal)
            adapter = run / "adapter"
            if not adapter.is_dir():
                previous = version.adapters.get(group)
                adapter = train_adapter(
                    self.host,
                    task,
                    method=self.config.build_method(),
                    config=self.config,
                    group=group,
                    previous=previous[1] if previous else None,
                    task_index=len(version.manifest["tasks"]),
                    folder=run,
                    journal=journal,
                )
            self.host.drop_trained()

            adapters = {**version.adapters, group: (f"{group}@{plan['version']:04d}", adapter)}
            predictions = self._evaluate(
                [*version.tasks(), task],
                codebook=codebook,
                adapters=adapters,
                known=version.predictions(),
                name="after",
                journal=journal,
            )
            scores = scores_percent(predictions)
            matrix = version.matrix()
            matrix = matrix.with_scores(0, scores_percent(before["base"]))
            matrix = matrix.with_scores(matrix.learned, scores_percent(before["current"]))
            try:
                check_gate(self.config.gate, before=matrix.row(matrix.learned), after=scores)
            except GateError:
                remove(run)
                raise
            matrix = matrix.append(task.name, scores)
            journal.write("learned", task=task.name, scores=scores, metrics=summarise(matrix))

            draft = run / "version"
            draft.mkdir(exist_ok=True)
            codebook.save(draft / "codebook.json")
            matrix.save(draft / "matrix.json")
            write_jsonl(draft / "predictions.jsonl", (p.to_json() for p in predictions))
            write_jsonl(draft / "journal.jsonl", journal.events())
            outcome = Outcome(
                task=task.name,
                version=plan["version"],
                group=group,
                reason=decision.reason,
                similarity=decision.similarity,
                score_base=scores_percent(before["base"])[task.name],
                score_before=scores_percent(before["current"])[task.name],
                scores=scores,
                seconds=round(time.monotonic() - start, 1),
            )
            manifest = {
                **plan,
                "group": group,
                "groups": version.manifest["groups"],
                "tasks": version.manifest["tasks"],
                "outcome": asdict(outcome),
                "metrics": summarise(matrix),
                "environment": environment(),
            }
            self.store.commit(draft, manifest, adapter=adapter, task=task)
            remove(run)
            return outcome

    def router(self, version: Version | None = None) -> Router:
        """Return the router of a version, by default the current one."""
        return Router((version or self.store.current).codebook())

    def _learned(self, task: Task, version: Version) -> Outcome | None:
        """Return the outcome if the assistant has learned this very task."""
        if task.name not in version.manifest["tasks"]:
            return None
        made = next(v for v in self.store.history() if v.manifest["task"] == task.name)
        if made.manifest["fingerprint"] != self._fingerprint(task):
            raise StoreError(
                f"{self.store.root}: task '{task.name}' was learned from other data in version "
                f"{made.number}. Give the new data another name."
            )
        remove(self.store.root / "runs" / _run_name(made.number, task))
        return Outcome(**made.manifest["outcome"])

    def _begin(self, task: Task, version: Version) -> tuple[Path, dict[str, Any]]:
        """Return the folder and the plan of this task's run, a new one or the interrupted one."""
        number = max(self.store.versions()) + 1
        plan = {
            "version": number,
            "parent": version.number,
            "task": task.name,
            "fingerprint": self._fingerprint(task),
        }
        runs = self.store.root / "runs"
        run = runs / _run_name(number, task)
        for other in sorted(runs.glob("*/plan.json")):
            found = read_json(other)
            if found["fingerprint"] == plan["fingerprint"] and found["parent"] == version.number:
                return other.parent, found
            raise StoreError(
                f"{other.parent}: the task '{found['task']}' is unfinished. Run the command that "
                "began it again, or delete this folder to give it up."
            )
        run.mkdir(parents=True, exist_ok=True)
        write_json(run / "plan.json", plan)
        return run, plan

    def _fingerprint(self, task: Task) -> str:
        content = [task.name, task.fingerprint(), self.config.model_dump(mode="json")]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _score_before(
        self, task: Task, version: Version, *, folder: Path, journal: Journal
    ) -> dict[str, list[Prediction]]:
        """Answer the new task's held-out samples with the base model and the current version."""
        path = folder / "before.jsonl"
        if not path.is_file():
            base = self._evaluate(
                [task], codebook=None, adapters={}, known=[], name="base", journal=journal
            )
            current = self._evaluate(
                [task],
                codebook=version.codebook(),
                adapters=version.adapters,
                known=base,
                name="before",
                journal=journal,
            )
            write_jsonl(path, [[p.to_json() for p in base], [p.to_json() for p in current]])
        base, current = ([Prediction.from_json(p) for p in part] for part in read_jsonl(path))
        return {"base": base, "current": current}

    def _evaluate(
        self,
        tasks: Sequence[Task],
        *,
        codebook: InstructionCodebook | None,
        adapters: Mapping[str, tuple[str, Path]],
        known: Sequence[Prediction],
        name: str,
        journal: Journal,
    ) -> list[Prediction]:
        """Answer and score held-out samples; ``codebook=None`` is the base model."""

        def progress(done: int, total: int) -> None:
            journal.tell({"event": "answering", "what": name, "done": done, "total": total})

        return evaluate(
            self.host,
            tasks,
            route=Router(codebook).route if codebook else Router(InstructionCodebook()).route,
            adapters=adapters,
            batch_size=self.config.generation.batch_size,
            known=known,
            progress=progress,
        )


def load_host(config: AssistantConfig) -> AdapterHost:
    """Load the base model of a configuration.

    Raises:
        ModelError: it cannot be loaded.
    """
    base = load_model(config.model, dtype=config.dtype)
    return AdapterHost(base, max_prompt_tokens=config.generation.max_prompt_tokens)


def _run_name(number: int, task: Task) -> str:
    return f"{number:04d}-{task.name}"


__all__ = ["ContinualLearner", "Outcome", "RouteDecision", "load_host"]
