"""The trainer: a process of its own that takes jobs from the queue, one after another.

Learning is a transaction that continues where it was killed; the queue says which job it was. So
a worker may die at any moment: the next one goes on, with the same result. As the child of a server
it has low priority, is started again when it dies, and is gone with the server.
"""

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lcia.config import AssistantConfig
from lcia.data import Task, TaskConfig, load_task
from lcia.errors import (
    ConfigError,
    DataError,
    DivergenceError,
    GateError,
    LciaError,
    ModelError,
    OutOfMemoryError,
    StoreError,
    TrainingError,
)
from lcia.learner import ContinualLearner, Joining, Store, consolidate
from lcia.live.data_files import DataFiles
from lcia.live.database import Database, DatabaseError
from lcia.live.feedback.teaching import Follower, Policy, quiet_s
from lcia.live.jobs import CANCELLED, FAILED, PAUSED, SUCCEEDED, Job, Jobs
from lcia.live.releases.canary import RUNNING, WORSE, Canaries, settle
from lcia.models.host import AdapterHost
from lcia.store.audit import acting
from lcia.store.fingerprint import fingerprint
from lcia.store.transaction import abandon, unfinished

logger = logging.getLogger(__name__)

ATTEMPTS = 10
"""Workers that may die in a row at one job without one step; then the job is at fault."""

ANSWER_TOKENS = (32, 512)
"""Least and most tokens of a held-out answer; in between, a few more than the longest taught."""

CORRECTION_STEPS = 200
"""Steps after which corrections are given up that are not taught; most need a tenth of it."""

CODES: tuple[tuple[type[LciaError], str, str | None], ...] = (
    (GateError, "gate_refused", None),
    (DataError, "invalid_training_file", "training_file"),
    (ConfigError, "invalid_settings", "hyperparameters"),
    (DivergenceError, "diverged", None),
    (OutOfMemoryError, "out_of_memory", None),
    (TrainingError, "training_failed", None),
    (ModelError, "model", None),
    (StoreError, "store", None),
)
"""What a failure is called, the first that fits."""


class _WantedError(LciaError):
    """The job is to be paused or cancelled, or to begin anew on another version."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class Worker:
    """Works on the jobs of one assistant; only one worker does at a time.

    Args:
        root: the assistant's folder.
        database: where its jobs are.
        poll_s: seconds between two looks into an empty queue.
        policy: when it learns accepted corrections by itself; None: never.
        consolidate_after: seconds without a job or an answer after which it tries to join groups;
            None: never.
    """

    def __init__(
        self,
        root: Path,
        database: Database,
        *,
        poll_s: float = 1.0,
        policy: Policy | None = None,
        consolidate_after: float | None = None,
    ) -> None:
        self.root = root
        self._database = database
        self._policy = policy
        self._consolidate_after = consolidate_after
        self._consolidated: set[int] = set()  # the versions that it was tried on
        self._busy = time.monotonic()  # when the last job ended
        self.jobs = Jobs(database)
        self.files = DataFiles(database)
        self.canaries = Canaries(database)
        self.poll_s = poll_s
        self._host: AdapterHost | None = None

    def run(self, *, until_empty: bool = False) -> None:
        """Work on jobs for ever, or until none is left.

        Raises:
            StoreError: there is no assistant.
            DatabaseError: the database cannot be used.
        """
        store = Store.open_unchecked(self.root)
        follower = Follower(self._policy, store, self._database) if self._policy else None
        with _only_one(self.root):
            while True:
                self._take_back()
                if job := self.jobs.take():
                    with acting(f"job {job['id']}"):
                        self.work(job)
                    self._busy = time.monotonic()
                elif (follower and self._follow(follower)) or self._consolidate():
                    pass  # there may be a job now
                elif until_empty:
                    return
                else:
                    time.sleep(self.poll_s)

    def _follow(self, follower: Follower) -> bool:
        """Queue what the policy says is due; tell whether it was anything."""
        try:
            with acting("policy"):
                return bool(follower.look())
        except DatabaseError:
            raise
        except LciaError as error:
            logger.error("corrections cannot be learned: %s", error)
            return False

    def _consolidate(self) -> bool:
        """Try to join groups if there is nothing else to do; tell whether it was tried.

        A job comes first: one that is ordered meanwhile ends the trial, which begins anew later.
        """
        after = self._consolidate_after
        if after is None:
            return False
        number = Store.open_unchecked(self.root).current_number
        if number in self._consolidated:
            return False  # also where its canary took a joining back
        if min(quiet_s(self._database), time.monotonic() - self._busy) < after:
            return False
        on = self.canaries.latest()
        if on is not None and on["state"] == RUNNING:
            return False  # its version may be taken back
        try:
            with acting("idle worker"):
                store = Store.open(self.root)
                learner = ContinualLearner(store, host=self._host, listener=self._give_way)
                gate = store.config.gate.for_jobs()
                learner.config = store.config.model_copy(update={"gate": gate})
                self._host = learner.host
                consolidate(learner, tell=_log_joining)
                self._consolidated.add(store.current_number)
        except _WantedError:
            self._host = None  # left in the middle of a step
            return True
        except DatabaseError:
            raise
        except LciaError as error:
            self._host = None
            logger.error("groups cannot be joined: %s", error)
        self._consolidated.add(number)
        return True

    def _give_way(self, event: Mapping[str, Any]) -> None:
        if self.jobs.waiting():
            raise _WantedError("a job")

    def work(self, job: Job) -> None:
        """Bring one job to its end, or put it aside if somebody wants that."""
        logger.info("job %s: learns %s", job["id"], job["task"])
        try:
            if job["attempts"] > ATTEMPTS:
                raise TrainingError(f"Its worker died {ATTEMPTS} times without a step.")
            self._succeed(job, *self._learn(job))
        except _WantedError as wanted:
            self._host = None  # left in the middle of a step
            if wanted.what == PAUSED:
                self.jobs.put_aside(job["id"])
            elif wanted.what == WORSE:
                self.jobs.put_back(job["id"])
            else:
                self._drop_run(job)
                self.jobs.end(job["id"], CANCELLED, told=["The job was cancelled"])
        except DatabaseError:
            raise  # no fault of the job's: the next worker goes on with it
        except LciaError as error:
            self._host = None
            self._drop_run(job)
            logger.error("job %s failed: %s", job["id"], error)
            code, param = next(((c, p) for k, c, p in CODES if isinstance(error, k)), ("job", None))
            told = {"code": code, "message": str(error), "param": param}
            self.jobs.end(job["id"], FAILED, told=[f"The job failed: {error}"], error=told)

    def _learn(self, job: Job) -> tuple[int, ContinualLearner, Task]:
        """Return the version that holds the job's task, and what taught it."""
        store = Store.open(self.root)
        learner = ContinualLearner(store, host=self._host, listener=self._listener(job))
        learner.config = configured(store.config, job)
        self._heed(job)
        self._host = learner.host
        task = self._task(job, learner.host)
        for told in self._while_busy(job):
            try:
                self._make_way(job, learner, task)
                return learner.learn(task).version, learner, task
            except StoreError as error:
                if not isinstance(error.__cause__, Timeout):
                    raise
                told(str(error))
        raise AssertionError("waits for ever")

    def _succeed(self, job: Job, number: int, learner: ContinualLearner, task: Task) -> None:
        version = learner.store.version(number)
        steps = [event for event in version.journal() if event["event"] == "step"]
        examples = learner.host.chat.encode_examples(task.train)
        tokens = sum(len(example.prompt_ids) + len(example.answer_ids) for example in examples)
        epochs = float(steps[-1].get("epoch", 0)) if steps else 0.0
        checks = (version.gate() or {"checks": []})["checks"]
        lines = ["step,train_loss", *(f"{e['step']},{e['loss']}" for e in steps)]
        self.jobs.end(
            job["id"],
            SUCCEEDED,
            version=number,
            trained_tokens=round(tokens * epochs),
            results=("step_metrics.csv", ("\n".join(lines) + "\n").encode()),
            told=[
                *(f"Gate: {check['why']}" for check in checks),
                *(_told_taught(event) for event in version.journal() if event["event"] == "taught"),
                f"New fine-tuned model created: assistant@{number}",
                "The job has successfully completed",
            ],
        )
        logger.info("job %s: version %d holds %s", job["id"], number, task.name)

    def _task(self, job: Job, host: AdapterHost) -> Task:
        """Return what the job's files teach."""
        settings = dict(job["settings"])
        corrects = settings.pop("corrects", False)
        with ExitStack() as stack:
            train = stack.enter_context(self.files.on_disk(job["training_file"]))
            test = job["validation_file"]
            tree = {
                "name": job["task"],
                "train": train,
                "test": stack.enter_context(self.files.on_disk(test)) if test else None,
                **settings,
            }
            task = replace(load_task(TaskConfig(**tree)), corrects=corrects)
        if "max_new_tokens" in settings:
            return task
        examples = host.chat.encode_examples((*task.train, *task.test))
        longest = max(len(example.answer_ids) for example in examples)
        least, most = ANSWER_TOKENS
        return replace(task, max_new_tokens=max(least, min(most, longest + 8)))

    def _make_way(self, job: Job, learner: ContinualLearner, task: Task) -> None:
        """Give up an unfinished run of another job, or one of this that cannot go on.

        What somebody began with ``lcia learn`` stays: learning then says what to do about it.
        """
        store = learner.store
        run = unfinished(store)
        if run is None:
            return
        wanted = fingerprint(learner.config, task, model=store.content_hash, schema=run.schema)
        own = (run.task, run.fingerprint) == (task.name, wanted)
        if own and run.parent == store.current_number:
            return
        if own or self.jobs.knows(run.task, besides=job["id"]):
            abandon(store)

    def _drop_run(self, job: Job) -> None:
        """Remove what an ended job has begun."""
        store = Store.open_unchecked(self.root)
        for told in self._while_busy(job):
            try:
                run = unfinished(store)
                if run is not None and run.task == job["task"]:
                    abandon(store)
                return
            except StoreError as error:
                if not isinstance(error.__cause__, Timeout):
                    logger.error("job %s: %s", job["id"], error)
                    return
                told(str(error))

    def _while_busy(self, job: Job) -> Iterator[Callable[[str], None]]:
        """Yield again and again what tells, once, that another process is changing the store."""
        told = False

        def tell(message: str) -> None:
            nonlocal told
            if not told:
                self.jobs.tell(job["id"], f"Waits: {message}", level="warn")
            told = True

        while True:
            yield tell
            time.sleep(self.poll_s)

    def _listener(self, job: Job) -> Callable[[Mapping[str, Any]], None]:
        def listen(event: Mapping[str, Any]) -> None:
            if event["event"] == "learned":
                return  # what was learned is released: too late to stop
            if event["event"] == "step":
                told = {name: event[name] for name in ("step", "steps", "eta_s", "loss")}
                self.jobs.step(job["id"], **told)
            self._heed(job)

        return listen

    def _heed(self, job: Job) -> None:
        if wanted := self.jobs.wanted(job["id"]):
            raise _WantedError(wanted)
        if self.canaries.is_worse():  # what is learned on top of it could not be released
            raise _WantedError(WORSE)

    def _take_back(self) -> None:
        """Move the store back from a version that its canary found to be worse."""
        on = self.canaries.latest()
        if on is not None and on["state"] == WORSE:
            settle(Store.open_unchecked(self.root), self.canaries, on)


def configured(config: AssistantConfig, job: Job) -> AssistantConfig:
    """Return an assistant's settings with those that a job names over them.

    What jobs learn is tested by the gate, unless the assistant's settings say that nothing is.
    """
    asked = {k: v for k, v in job["hyperparameters"].items() if v != "auto"}
    training = dict(config.training)
    if job["settings"].get("corrects") and "n_epochs" not in asked:
        training["max_steps"] = CORRECTION_STEPS
    if "n_epochs" in asked:
        training |= {"num_train_epochs": asked["n_epochs"]}
        training.pop("max_steps", None)
    if "batch_size" in asked:
        training["per_device_train_batch_size"] = asked["batch_size"]
    if "learning_rate_multiplier" in asked:
        training["learning_rate"] = (
            config.training["learning_rate"] * (asked["learning_rate_multiplier"])
        )
    changed = {"training": training, "seed": job["seed"], "gate": config.gate.for_jobs()}
    return config.model_copy(update=changed)


def _log_joining(joining: Joining) -> None:
    verb = "stay" if joining.why_not else "joined"
    said = f"{joining.group} and {joining.other} {verb}"
    logger.info("groups %s", f"{said}: {joining.why_not}" if joining.why_not else said)


def _told_taught(event: Mapping[str, Any]) -> str:
    return (
        f"{event['held']} of {event['corrections']} corrections are learned word for word after "
        f"{event['step']} steps"
    )


@contextmanager
def _only_one(root: Path) -> Iterator[None]:
    """Hold the right to work on an assistant's jobs; it ends with the process, however it ends."""
    lock = FileLock(root / ".worker.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("%s: another worker works on its jobs; this one waits.", root)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


NICE = 10
PAUSES_S = (1.0, 60.0)
"""First and longest pause before a worker that died is started again."""
STOP_S = 10.0
URL = "LCIA_DATABASE"
"""Environment variable of the database: a command line is read by every user of a machine."""


@contextlib.contextmanager
def working(root: Path, *, url: str, options: Sequence[str] = ()) -> Iterator[None]:
    """Keep a worker of the assistant at ``root`` running, with further options of its command."""
    keeper = _Keeper(root, url=url, options=options)
    thread = threading.Thread(target=keeper.keep, name="worker", daemon=True)
    thread.start()
    try:
        yield
    finally:
        keeper.stop()
        thread.join()


class _Keeper:
    def __init__(self, root: Path, *, url: str, options: Sequence[str]) -> None:
        self._command = [sys.executable, "-m", "lcia", "worker", str(root)]
        self._command += ["--nice", str(NICE), "--threads", "1", "--while-stdin"]
        self._command += options
        self._environment = {**os.environ, URL: url, "OMP_NUM_THREADS": "1"}
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def keep(self) -> None:
        pause = PAUSES_S[0]
        while child := self._start():
            code = child.wait()
            if self._over.is_set():
                return
            logger.error("the worker ended with %d; it is started again in %g s", code, pause)
            self._over.wait(pause)
            pause = min(2 * pause, PAUSES_S[1])

    def _start(self) -> "subprocess.Popen[bytes] | None":
        with self._lock:
            if self._over.is_set():
                return None
            # The open pipe says that the server lives: its end, however it comes, closes it.
            self._child = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, env=self._environment
            )
            return self._child

    def stop(self) -> None:
        with self._lock:
            self._over.set()
            child = self._child
        if child is not None:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(STOP_S)
            child.kill()


def end_with_stdin() -> None:
    """End this process at once when its standard input does: whoever started it is gone.

    Learning is a transaction; nothing is lost by it.
    """

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        os._exit(0)

    threading.Thread(target=watch, name="server", daemon=True).start()
