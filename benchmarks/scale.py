"""A thousand tasks: what one more costs outside training, and what a large store costs.

    export PYTHONPATH=tests
    python -m benchmarks.scale --superni DATA --folder WORK         # goes on where it stopped

A tiny random Llama learns tasks resampled from Super-NaturalInstructions task files, with 100 kinds
of instruction. Each task is learned as ``lcia learn`` does it, in one process that keeps the base
model. With ``--window N`` only the N tasks up to each checkpoint are learned so; of those between
them, the adapter is a copy, the answers are empty and nothing waits for the disk, while placing,
routing, scoring, matrix and store are the real ones. ``WORK/tasks.jsonl`` gets a line a task,
``WORK/checkpoints.jsonl`` a line a checkpoint.
``python -m benchmarks.scale_report`` makes the table, the plot and the cost model from them.
"""

import argparse
import gc
import json
import os
import random
import re
import resource
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from lcia.config import AssistantConfig
from lcia.data import Message, Sample, Task
from lcia.decision.placing import instructions_of
from lcia.files import files_below, place_copy
from lcia.grouping.instruction import told
from lcia.learner import ContinualLearner, Store, learning
from lcia.learner.learning import load_host
from lcia.learner.training import TRAINED
from lcia.models.host import AdapterHost
from lcia.store.transaction import write_task

KINDS, TRAIN, TEST = 100, 8, 6
BUDGET = 24
ANSWER = 4
CHECKPOINTS = (10, 30, 60, 100, 200, 350, 500, 650, 800, 1000)
ROUTED = 300
COMPARED = 6
SENTENCE = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One of the instructions.

    Attributes:
        instruction: its text.
        instances: pairs of input and answers that go with it.
    """

    instruction: str
    instances: list[tuple[str, tuple[str, ...]]]


def kinds_of(folder: Path, count: int) -> list[Kind]:
    """Return kinds: the files' own instructions, then mixtures of sentences of several."""
    records = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))
    ]
    if not records:
        raise SystemExit(f"{folder}: no Super-NaturalInstructions task files there.")
    texts = [" ".join(record["Definition"]) for record in records]
    sentences = [s for text in texts for s in SENTENCE.split(text) if len(s) > 40]
    dice, kinds = random.Random(0), []
    for number in range(count):
        record, text = records[number % len(records)], texts[number % len(records)]
        if number >= len(records):
            own = SENTENCE.split(text)
            text = " ".join(dice.sample(own, max(1, len(own) // 2)) + dice.sample(sentences, 3))
        short = [(i["input"], short_answers(i["output"])) for i in record["Instances"]]
        kinds.append(Kind(instruction=text, instances=[i for i in short if all(i[1])]))
    return kinds


def short_answers(outputs: list[str]) -> tuple[str, ...]:
    """Return the first letters of answers: a random model says them as badly, in less time."""
    words = (re.findall("[a-z0-9]+", output.lower())[:1] for output in outputs)
    return tuple(dict.fromkeys("".join(found)[:ANSWER] for found in words))


def task_of(number: int, kinds: list[Kind]) -> Task:
    """Return task ``number``: samples of one kind, drawn anew for each task."""
    dice = random.Random(number)
    block, place = divmod(number, len(kinds))
    order = random.Random(f"order {block}").sample(range(len(kinds)), len(kinds))
    kind = kinds[order[place]]
    drawn = dice.sample(kind.instances, TRAIN + TEST)
    samples = tuple(
        Sample(
            id=str(i),
            messages=(Message(role="user", content=f"{kind.instruction}\n\n{given}"),),
            answers=answers,
            instruction=kind.instruction,
        )
        for i, (given, answers) in enumerate(drawn)
    )
    return Task(
        name=f"task{number:04d}",
        train=samples[:TRAIN],
        test=samples[TRAIN:],
        scorer="rougeL",
        instruction="field",
        max_new_tokens=4,
    )


def config_of(model: Path, *, budget: int | None) -> AssistantConfig:
    """Return the settings: one step a task, short prompts, and the bound on held-out answers."""
    return AssistantConfig(
        model=str(model),
        dtype="float32",
        adapter={"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]},
        training={"max_steps": 1, "per_device_train_batch_size": 8, "save_steps": 1000},
        generation={"max_prompt_tokens": 192},
        **({"evaluation": {"samples": budget}} if budget else {}),
    )


class Stopwatch:
    """Seconds inside Trainer.train and answers generated, while a task is learned."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count what happens in here."""
        train, answer = transformers.Trainer.train, AdapterHost.generate
        spent = self.spent

        def trained(trainer: Any, *args: Any, **options: Any) -> Any:
            begun, used = time.perf_counter(), time.process_time()
            result = train(trainer, *args, **options)
            spent["training"] += time.perf_counter() - begun
            spent["training_processor"] += time.process_time() - used
            spent["steps"] += trainer.state.global_step
            return result

        def answered(host: Any, prompts: Any, *args: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            result = answer(host, prompts, *args, **options)
            spent["answering"] += time.perf_counter() - begun
            spent["answers"] += len(prompts)
            return result

        transformers.Trainer.train, AdapterHost.generate = trained, answered
        try:
            yield
        finally:
            transformers.Trainer.train, AdapterHost.generate = train, answer


@contextmanager
def without_model() -> Iterator[None]:
    """Learn without training and answering in here: an adapter is a copy, an answer is empty."""

    def copied(*args: Any, start: Path, folder: Path, **options: Any) -> Path:
        place_copy(options["own"] or start, folder / TRAINED)
        return folder / TRAINED

    def silent(host: Any, prompts: Any, *args: Any, **options: Any) -> list[str]:
        return [""] * len(prompts)

    places = [(learning, "train_adapter", copied), (learning, "preflight", lambda *args: None)]
    places += [(AdapterHost, "generate", silent), (os, "fsync", lambda descriptor: None)]
    before = [(where, name, getattr(where, name)) for where, name, _ in places]
    for where, name, other in places:
        setattr(where, name, other)
    try:
        yield
    finally:
        for where, name, own in before:
            setattr(where, name, own)


def jump(root: Path, kinds: list[Kind], *, to: int) -> None:
    """Make one version that holds tasks up to ``to``, as if each had been learned.

    Their held-out samples, instructions and matrix cells are there, in the groups that exist; the
    versions that would have led here are not.
    """
    store = Store.open(root)
    with store.writing():
        current = store.current
        codebook, matrix = current.codebook(), current.matrix()
        places, groups = dict(current.manifest["tasks"]), {}
        for number in range(len(places), to):
            task = task_of(number, kinds)
            extraction = instructions_of(task)
            text = task.train[0].instruction
            if text not in groups:
                groups[text] = codebook.decide(extraction.instructions).group
            codebook.add(groups[text], extraction, task=task.name)
            places[task.name] = f"tasks/{task.name}/{task.fingerprint()[:12]}"
            write_task(task, root / places[task.name])
            names = [task.name, *matrix.tasks[-BUDGET:]]
            counts = dict.fromkeys(names, 1) | {task.name: TEST}
            matrix = matrix.append(task.name, dict.fromkeys(names, 0.0), counts=counts)
        scored = matrix, current.predictions()
        more, kept = {"tasks": places}, current.manifest["groups"]
        store.revise(codebook, groups=kept, adapters={}, scored=scored, note="jump", more=more)


def learn_one(root: Path, host: AdapterHost, task: Task) -> dict[str, Any]:
    """Learn a task from opening the store on; return what it took."""
    watch = Stopwatch()
    begun, used = time.perf_counter(), time.process_time()
    with watch.watching():
        store = Store.open(root)
        outcome = ContinualLearner(store, host=host).learn(task)
    whole = time.perf_counter() - begun
    spent = watch.spent
    processor = time.process_time() - used
    return {
        "seconds": round(whole, 4),
        "outside_training": round(whole - spent["training"], 4),
        "answering": round(spent["answering"], 4),
        "processor_outside_training": round(processor - spent["training_processor"], 4),
        "steps": spent["steps"],
        "answers": spent["answers"],
        "group": outcome.group,
        "reason": outcome.reason,
    }


def measure(root: Path, kinds: list[Kind], *, tasks: int) -> dict[str, Any]:
    """Return what a store of so many tasks costs: bytes, and seconds of what opens and reads it."""
    begun = time.perf_counter()
    store = Store.open(root)
    opening = time.perf_counter() - begun
    begun = time.perf_counter()
    findings = store.verify()
    verifying = time.perf_counter() - begun
    if findings:
        raise SystemExit("\n".join(findings))
    router = ContinualLearner(store).router()
    dice, taken = random.Random(1), []
    for _ in range(ROUTED):
        task = task_of(dice.randrange(tasks), kinds)
        prompt = told(dice.choice(task.test).messages)
        begun = time.perf_counter()
        router.route(prompt)
        taken.append(time.perf_counter() - begun)
    sizes: Counter[str] = Counter()
    for path in files_below(root):
        sizes[path.relative_to(root).parts[0]] += path.stat().st_size
    current = store.current
    return {
        "tasks": tasks,
        "groups": len(current.manifest["groups"]),
        "bytes": sum(sizes.values()),
        "bytes_by_folder": dict(sizes),
        "version_bytes": {p.name: p.stat().st_size for p in sorted(current.path.iterdir())},
        "open_s": round(opening, 4),
        "verify_s": round(verifying, 3),
        "route_p50_ms": round(1000 * statistics.median(taken), 3),
        "route_p99_ms": round(1000 * statistics.quantiles(taken, n=100)[-1], 3),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def compare(roots: list[Path], host: AdapterHost, kinds: list[Kind], path: Path) -> None:
    """Learn the next task of two assistants in turns, so that what else runs meets both."""
    for number in range(2 * (COMPARED + 1)):
        root = roots[number % 2]
        tasks = len(Store.open(root).current.manifest["tasks"])
        record = learn_one(root, host, task_of(tasks, kinds))
        if number > 1:  # the first of each fills caches
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"task": tasks + 1, **record}) + "\n")


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the records of a JSON Lines file; none where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Learn tasks; measure at checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--superni", type=Path, required=True, help="folder of task files")
    parser.add_argument("--folder", type=Path, required=True, help="store, model and results")
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--budget", type=int, default=BUDGET, help="evaluation.samples; 0: all")
    parser.add_argument("--jump", type=int, default=0, help="first put so many tasks into it")
    parser.add_argument("--beside", type=Path, help="learn here and in this folder, in turns")
    parser.add_argument("--window", type=int, default=0, help="learn so many in full; 0: all")
    parser.add_argument(
        "--profile", action="store_true", help="print where the last task's time goes"
    )
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    kinds = kinds_of(asked.superni, KINDS)
    root, model = asked.folder / "assistant", asked.folder / "model"
    if not (root / "assistant.json").exists():
        from conftest import save_tiny_model  # only what learns needs the tests at hand

        config = config_of(save_tiny_model(model), budget=asked.budget or None)
        ContinualLearner.create(root, config)
    host = load_host(Store.open(root).config)
    gc.freeze()  # Trainer collects garbage; what was imported is none, and takes half a second
    noted, told_of = asked.folder / "tasks.jsonl", asked.folder / "checkpoints.jsonl"
    if asked.beside:
        compare([root, asked.beside / "assistant"], host, kinds, asked.folder / "beside.jsonl")
        return
    if asked.jump:
        jump(root, kinds, to=asked.jump)
    done = len(Store.open(root).current.manifest["tasks"])
    for number in range(done, asked.tasks):
        task = task_of(number, kinds)
        if asked.profile and number == asked.tasks - 1:
            profile(root, host, task)
            return
        due = next((c for c in CHECKPOINTS if c > number), asked.tasks)
        real = not asked.window or not number or due - number <= asked.window
        with nullcontext() if real else without_model():
            record = {"task": number + 1, "real": real, **learn_one(root, host, task)}
        with noted.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if number + 1 in CHECKPOINTS:
            record = measure(root, kinds, tasks=number + 1)
            with told_of.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


def profile(root: Path, host: AdapterHost, task: Task) -> None:
    """Learn a task under Python's profiler and print the dearest functions."""
    import cProfile
    import pstats

    profiler = cProfile.Profile()
    profiler.runcall(learn_one, root, host, task)
    pstats.Stats(profiler).sort_stats("cumulative").print_stats(70)


if __name__ == "__main__":
    main()
