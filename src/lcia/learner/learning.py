"""Continual learning: one task as a transaction, a stream as one task after another."""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from lcia.config import AssistantConfig
from lcia.data.sample import Task
from lcia.decision.choosing import Chooser, of_one_shape, read_choice
from lcia.decision.placing import Placed, instructions_of, place
from lcia.distributed.launch import launch_of, start
from lcia.distributed.processes import everyone, is_main, on_main
from lcia.errors import DivergenceError, ModelError, StoreError
from lcia.evaluation.generate import (
    Prediction,
    Progress,
    counts_of,
    read_predictions,
    scores_percent,
)
from lcia.evaluation.kept import Keep, digest
from lcia.evaluation.matrix import AccuracyMatrix
from lcia.evaluation.metrics import summarise
from lcia.files import discard, write_jsonl
from lcia.grouping import InstructionCodebook, Router
from lcia.learner.gate import Candidate, examine, pass_gate, refused_before
from lcia.learner.outcome import Outcome, environment
from lcia.learner.preflight import preflight
from lcia.learner.scoring import score_tasks, scored_tasks
from lcia.learner.training import (
    TRAINED,
    UNTRAINED,
    share_projector,
    shared_projector,
    train_adapter,
)
from lcia.memory import keep_freed_memory, memory_watched, release_memory
from lcia.methods.base import Method
from lcia.models.answering import TODAY, TemplateSettings
from lcia.models.host import AdapterHost
from lcia.models.loading import check_model, content_hash, load_model
from lcia.registry import SCORERS
from lcia.store.fingerprint import fingerprint
from lcia.store.finite import check_finite
from lcia.store.journal import Journal, Listener
from lcia.store.store import Store
from lcia.store.transaction import DRAFT, Run, begin, commit, propose
from lcia.store.version import GATE, Version


class ContinualLearner:
    """Teaches an assistant one task after another.

    Args:
        store: the assistant's directory.
        host: its base model in memory; None loads it when first needed.
        listener: told every event: what is being done, each step, each score.
    """

    chooser: ClassVar[type[Chooser]] = Chooser
    """What measures the candidates of a retrained group."""

    def __init__(
        self, store: Store, *, host: AdapterHost | None = None, listener: Listener | None = None
    ) -> None:
        self.store = store
        self.config = store.config
        self.listener = listener
        self._host = host

    @classmethod
    def create(
        cls,
        root: str | Path,
        config: AssistantConfig,
        *,
        first: Task | None = None,
        host: AdapterHost | None = None,
        listener: Listener | None = None,
    ) -> "ContinualLearner":
        """Make an empty assistant at ``root`` after checking its configuration and model.

        Args:
            root: a new or empty folder.
            config: its settings.
            first: the task it learns first: whether it can be trained is checked, too.
            host: its base model in memory; None loads it when first needed.
            listener: told every event.

        Raises:
            ConfigError: an unknown setting.
            ModelError: the model does not exist.
            StoreError: ``root`` is not empty.
        """
        start(config.training)
        config.check()
        check_model(config.model)
        stored = config.resolved()
        if first is not None:
            host = host or load_host(stored)
            preflight(host, first, stored)
        on_main(lambda: Store.create(root, stored, content_hash=content_hash(config.model)))
        return cls(Store.open(root), host=host, listener=listener)

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

    def router(self, version: Version | None = None) -> Router:
        """Return the router of a version, by default the current one."""
        return Router((version or self.store.current).codebook())

    def evaluate(
        self,
        version: Version | None = None,
        *,
        task_given: bool | None = None,
        known: Sequence[Prediction] = (),
        keep: Keep | None = None,
        progress: Progress = lambda done, total: None,
    ) -> list[Prediction]:
        """Answer the held-out samples of all tasks anew, and score the answers.

        Under a launcher, every process calls this, and all answer.

        Args:
            version: the version that answers; by default the current one.
            task_given: whether samples go to the group that learned their task, past the router:
                what routing costs is the difference. None: as the method does.
            known: predictions whose answers are taken where the same adapter answers.
            keep: where answers are kept as they come, to go on from after a stop.
            progress: told how many are answered, and of how many.
        """
        version = version or self.store.current
        return score_tasks(
            self.host,
            self.config,
            version.tasks(),
            codebook=version.codebook(),
            adapters=version.adapters,
            task_given=task_given,
            known=known,
            keep=keep,
            progress=progress,
        )

    def run(self, tasks: Iterable[Task]) -> list[Outcome]:
        """Learn one task after another; those already learned are skipped.

        A method that learns jointly only gathers all of them but the last: each is a version with
        an untrained adapter and without scores.
        """
        stream, known = list(tasks), self.store.current.manifest["tasks"]
        left = [task.name for task in stream if task.name not in known]
        gathered = left[:-1] if self.config.build_method().joint else []
        return [self._learn(task, gather=task.name in gathered) for task in stream]

    def learn(self, task: Task) -> Outcome:
        """Learn one task: group, train, evaluate all tasks, gate, commit.

        A transaction: the new version appears as a whole or not at all. Calling it again after
        it was killed continues where it was, with the same result to the bit; calling it again
        after it succeeded returns the same outcome.

        Args:
            task: a task the assistant has not learned.

        Raises:
            ConfigError: the task names an unknown scorer or instruction recipe.
            StoreError: the name was used for other data, another task is unfinished, or another
                process is learning.
            GateError: the new version is worse than the gate allows; nothing was changed.
            DivergenceError: a loss, gradient or parameter was not finite; nothing was changed.
            OutOfMemoryError: memory ran out; calling again resumes.
            TrainingError: training failed; calling again resumes it.
        """
        return self._learn(task, gather=False)

    @memory_watched()
    def _learn(self, task: Task, *, gather: bool) -> Outcome:
        start(self.config.training)
        check_task(task)
        method = self.config.build_method()
        with self.store.writing() if is_main() else nullcontext():
            current = self.store.current
            if task.name in current.manifest["tasks"]:
                return self._outcome(task)
            prints = partial(self._fingerprint, task)
            refused_before(self.store, self.config.gate, prints, current)
            preflight(self.host, task, self.config)
            on_main(lambda: begin(self.store, task.name, prints))
            run = begin(self.store, task.name, prints)
            journal = self._journal(run)

            share = 0.0 if gather else method.held_back
            placed = self._place(task, current, share=share, journal=journal)
            answer = partial(self._answer, run=run, journal=journal)
            matrix, before = current.matrix(), []
            if not method.joint:  # learned at once, tasks have no scores before
                base = answer("base", [task], codebook=InstructionCodebook(), adapters={})
                matrix = self._with(matrix, 0, base)
                before = answer(
                    "current", [task], codebook=current.codebook(), adapters=current.adapters
                )
                matrix = self._with(matrix, matrix.learned, before)
            try:
                adapter = self._train(
                    placed,
                    current,
                    method=method,
                    run=run,
                    journal=journal,
                    train=method.trains and not gather,
                )
                check_finite(adapter)
            except DivergenceError:
                self._give_up(run)
                raise
            codebook, group, said = placed.settled(read_choice(run))
            trained = self._new_adapters(group, adapter, current, run=run)
            keys = {name: (f"{name}@{run.number:04d}", path) for name, path in trained.items()}
            adapters = {**current.adapters, **keys}
            earlier = [] if gather else scored_tasks(current, self.config, matrix)
            known, before_all = self._to_compare(current, earlier, before, matrix, answer=answer)
            after = (
                []
                if gather
                else answer(
                    "after",
                    [*earlier, task],
                    codebook=codebook,
                    adapters=adapters,
                    known=known,
                )
            )
            scores = scores_percent(after)
            matrix = matrix.append(task.name, scores, counts=self._counts(after))
            metrics = summarise(matrix)
            candidate = Candidate(
                task=task,
                codebook=codebook,
                adapters=adapters,
                before=before_all,
                scores=scores,
                earlier=known,
                current=before,
                after=after,
            )
            report = examine(self.host, self.config, current, candidate, run=run, journal=journal)
            journal.write("learned", task=task.name, scores=scores, metrics=metrics)

            basis = {} if matrix.basis is None else {"basis": matrix.basis}
            told = {**said, "metrics": metrics, **basis}
            args = run, task, candidate, matrix, journal, told, group, trained
            on_main(lambda: self._propose(*args))
            pass_gate(self.store, self.host, report, run=run)
            on_main(lambda: commit(self.store, run))
            release_memory()
            return self._outcome(task, matrix)

    def _propose(
        self,
        run: Run,
        task: Task,
        candidate: Candidate,
        matrix: AccuracyMatrix,
        journal: Journal,
        told: Mapping[str, Any],
        group: str,
        adapters: Mapping[str, Path],
    ) -> None:
        """Write the files of the version that a run leads to."""
        draft = run.folder / DRAFT
        draft.mkdir(exist_ok=True)
        candidate.codebook.save(draft / "codebook.json")
        matrix.save(draft / "matrix.json")
        write_jsonl(draft / "predictions.jsonl", (p.to_json() for p in candidate.after))
        # What the gate found, and what the cells R[0, i] and R[i-1, i] rest on.
        for name in (GATE, "base.jsonl", "current.jsonl"):
            if (run.folder / name).is_file():
                shutil.copy(run.folder / name, draft)
        write_jsonl(draft / "journal.jsonl", journal.events())
        contents = {**told, "seconds": journal.seconds(), "environment": environment()}
        propose(self.store, run, task, group=group, adapters=adapters, contents=contents)

    def _with(
        self, matrix: AccuracyMatrix, row: int, predictions: Sequence[Prediction]
    ) -> AccuracyMatrix:
        """Return the matrix with a row's cell of the new task: all its samples were answered."""
        scores = scores_percent(predictions)
        return matrix.with_scores(row, scores, counts=self._counts(predictions))

    def _counts(self, predictions: Sequence[Prediction]) -> dict[str, int] | None:
        """Return the samples behind each task's score; None where that is all of them."""
        return None if self.config.evaluation.samples is None else counts_of(predictions)

    def _to_compare(
        self,
        current: Version,
        earlier: Sequence[Task],
        before: Sequence[Prediction],
        matrix: AccuracyMatrix,
        *,
        answer: Callable[..., list[Prediction]],
    ) -> tuple[list[Prediction], Mapping[str, float | None]]:
        """Return the current version's answers on earlier tasks, and its scores on all.

        Where a version answers some of the samples, the new one answers others than this one did;
        for the gate, this one answers those, too.
        """
        known = current.predictions()
        bounded = self.config.evaluation.samples is not None
        if not (bounded and earlier and self.config.gate.looks):
            return known, matrix.row(matrix.learned)
        own = {"codebook": current.codebook(), "adapters": current.adapters}
        known = answer("earlier", earlier, known=known, **own)
        return known, {**scores_percent(known), **scores_percent(before)}

    def _outcome(self, task: Task, matrix: AccuracyMatrix | None = None) -> Outcome:
        """Return what learning the task led to; ``matrix`` where it has just been learned.

        Raises:
            StoreError: the task of this name was learned from other data.
        """
        made = next(v for v in self.store.lineage() if v.manifest["task"] == task.name)
        if made.manifest["fingerprint"] != self._fingerprint(task, made.fingerprint_schema):
            raise StoreError(
                f"{self.store.root}: task '{task.name}' was learned from other data in version "
                f"{made.number}. Give the new data another name."
            )
        return Outcome.of(made, matrix)

    def _place(self, task: Task, current: Version, *, share: float, journal: Journal) -> Placed:
        """Decide which group learns the task, and add its instructions to the codebook."""
        return place(task, self.store, current, share=share, journal=journal)

    def _train(
        self,
        placed: Placed,
        current: Version,
        *,
        method: Method,
        run: Run,
        journal: Journal,
        train: bool,
    ) -> Path:
        """Return the group's new adapter, training it unless that is done or not wanted."""
        name = TRAINED if train else UNTRAINED
        adapter = run.folder / name
        if everyone(lambda: not run.holds(name)):
            _, own = current.adapters.get(placed.group, (None, None))
            measured = own is not None and bool(placed.held) and of_one_shape(current.adapters)
            chooser = self.chooser(self.host, method, placed, current.adapters, run, journal)
            spreads = launch_of(self.config.training).spreads
            alone = measured and not spreads and chooser.expects_sibling()
            shared = self.config.projector.mode == "shared"
            train_adapter(
                self.host,
                placed.alone if alone else placed.lesson,
                method=method,
                config=self.config,
                group=placed.group,
                start=placed.start_alone if alone else placed.start,
                own=own,
                projector=shared_projector(current.adapters) if shared else None,
                task_index=len(current.manifest["tasks"]),
                folder=run.folder,
                journal=journal,
                train=train,
                choose=chooser if measured else None,
                held=placed.held,
                alone=alone,
            )
            on_main(lambda: run.record(name))
            self.host.clear()
            if self.host.is_sharded:
                self._host = None  # each process holds a part; answering needs the whole again
        return adapter

    def _new_adapters(
        self, group: str, adapter: Path, current: Version, *, run: Run
    ) -> dict[str, Path]:
        """Return group to folder of what is new: all of them where they share a projector."""
        others = {g: a for g, a in current.adapters.items() if g != group}
        if self.config.projector.mode != "shared" or shared_projector(others) is None:
            return {group: adapter}
        return {group: adapter, **share_projector(adapter, others, folder=run.folder / "shared")}

    def _answer(
        self,
        name: str,
        tasks: Sequence[Task],
        *,
        run: Run,
        journal: Journal,
        **options: Any,
    ) -> list[Prediction]:
        """Return predictions on held-out samples, from the run's folder if they are there.

        All processes answer; answers are kept as they come, and a stopped run goes on from them.
        """
        path = run.folder / f"{name}.jsonl"
        if everyone(lambda: not run.holds(path.name)):
            keep = Keep(path=run.folder / f"{name}-answers.jsonl", given=digest([run.done]))
            predictions = score_tasks(
                self.host,
                self.config,
                tasks,
                progress=lambda done, total: journal.tell(
                    {"event": "answering", "what": name, "done": done, "total": total}
                ),
                keep=keep,
                **options,
            )

            def record() -> None:
                write_jsonl(path, (p.to_json() for p in predictions))
                run.record(path.name)
                keep.path.unlink()

            on_main(record)
        return read_predictions(path)

    def _give_up(self, run: Run) -> None:
        """Leave the assistant as it was: what the run would do again has no use."""
        self.host.clear()
        on_main(lambda: discard(run.folder))

    def _journal(self, run: Run) -> Journal:
        if not is_main():
            return Journal(None)
        return Journal(run.folder / "journal.jsonl", self.listener)

    def _fingerprint(self, task: Task, schema: int) -> str:
        return fingerprint(self.config, task, model=self.store.content_hash, schema=schema)


def check_task(task: Task) -> None:
    """Check what a task names, before any work is done.

    Raises:
        ConfigError: an unknown scorer or instruction recipe.
        DataError: the recipe cannot work on the task's prompts.
    """
    SCORERS.get(task.scorer)
    instructions_of(task)


def load_host(config: AssistantConfig) -> AdapterHost:
    """Load the base model of a configuration.

    Raises:
        ModelError: it cannot be loaded.
    """
    base = load_model(config.model, dtype=config.dtype, quantize=config.quantize)
    if base.model.device.type == "cpu":
        keep_freed_memory()
    return AdapterHost(
        base,
        max_prompt_tokens=config.generation.max_prompt_tokens,
        projector=config.projector.mode != "frozen",
        pad_images=config.pad_images,
        template=template_settings(config),
    )


def template_settings(config: AssistantConfig) -> TemplateSettings:
    """Return what the chat template is rendered with."""
    return TemplateSettings(
        kwargs=config.generation.chat_template_kwargs,
        date=config.generation.date or TODAY,
        fold_system=config.generation.fold_system,
        named=config.generation.chat_template,
    )
