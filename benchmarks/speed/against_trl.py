"""Training tokens per processor second beside TRL's SFTTrainer: same model, data, LoRA and batch.

    pip install -c constraints.txt trl
    python -m benchmarks.speed.against_trl                # prints, kept as against_trl

Each measurement is a process of its own with one thread; plain training, training with dynamic EMA
and merge, and SFTTrainer (answers only, as ours) take turns. What a process needs besides training
is left out, and so are its first steps. Tokens are those of prompts and answers, without padding.
Both train in float32: SFTTrainer has no other choice on a processor than ours.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from operator import truediv
from pathlib import Path
from typing import Any

import transformers

from benchmarks.measured import keep, kept
from lcia.data import load_stream
from lcia.learner.outcome import environment

CONTESTANTS = ("sequential", "lcia", "trl")
WARM_UP = 3
BATCH, RANK = 8, 8


class Clock(transformers.TrainerCallback):
    """Notes processor time and tokens at the end of each step."""

    def __init__(self) -> None:
        self.tokens = 0
        self.noted: list[tuple[float, int]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note one step."""
        self.noted.append((time.process_time(), self.tokens))

    @property
    def rate(self) -> float:
        """Tokens per processor second after the first steps."""
        (begun, before), (ended, after) = self.noted[WARM_UP], self.noted[-1]
        return (after - before) / (ended - begun)


def watch_trainers(steps: int) -> list[Clock]:
    """Give every Trainer that trains so many steps a clock; return the clocks."""
    clocks: list[Clock] = []
    train = transformers.Trainer.train

    def watched(trainer: Any, *args: Any, **options: Any) -> Any:
        clock = Clock()
        step = trainer.training_step

        def counted(model: Any, inputs: Any, *rest: Any) -> Any:
            clock.tokens += int(inputs["attention_mask"].sum())
            return step(model, inputs, *rest)

        trainer.training_step = counted
        trainer.add_callback(clock)
        result = train(trainer, *args, **options)
        if len(clock.noted) >= steps:
            clocks.append(clock)
        return result

    transformers.Trainer.train = watched
    return clocks


def by_lcia(method: str, steps: int) -> float:
    """Return the tokens per processor second of a group's second task."""
    from lcia.config import AssistantConfig
    from lcia.learner import ContinualLearner

    clocks = watch_trainers(steps)
    config = AssistantConfig(
        model="smollm2-135m",
        dtype="float32",
        method={"name": method},
        grouping="off",
        adapter={"r": RANK, "lora_alpha": 2 * RANK, "target_modules": "all-linear"},
        training={"max_steps": steps, "per_device_train_batch_size": BATCH, "save_steps": 10**6},
    )
    with tempfile.TemporaryDirectory() as folder:
        learner = ContinualLearner.create(Path(folder) / "assistant", config)
        for task in tasks():
            learner.learn(task)
    return clocks[-1].rate


def by_trl(steps: int) -> float:
    """Return those of SFTTrainer on the same samples."""
    import datasets
    import peft
    import trl

    from lcia.models.loading import load_model

    base = load_model("smollm2-135m", dtype="float32")
    clocks = watch_trainers(steps)
    records = [
        {
            "prompt": [{"role": m.role, "content": m.content} for m in sample.messages],
            "completion": [{"role": "assistant", "content": sample.answers[0]}],
        }
        for sample in tasks()[-1].train
    ]
    with tempfile.TemporaryDirectory() as folder:
        trl.SFTTrainer(
            model=base.model,
            processing_class=base.tokenizer,
            train_dataset=datasets.Dataset.from_list(records),
            peft_config=peft.LoraConfig(
                r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"
            ),
            args=trl.SFTConfig(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=BATCH,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                logging_steps=1,
            ),
        ).train()
    return clocks[-1].rate


def tasks() -> list[Any]:
    """Return two tasks of short samples, with a few held-out ones."""
    from dataclasses import replace

    return [replace(task, test=task.test[:2]) for task in load_stream("builtin:skills")[:2]]


def main() -> None:
    """Take turns; print and write medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--one", choices=CONTESTANTS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        rate = by_trl(asked.steps) if asked.one == "trl" else by_lcia(asked.one, asked.steps)
        print(json.dumps(rate))
        return
    rates: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for number in range(asked.rounds):
        for name in CONTESTANTS[:: 1 if number % 2 else -1]:
            command = [sys.executable, "-m", "benchmarks.speed.against_trl", "--one", name]
            done = subprocess.run(
                [*command, "--steps", str(asked.steps)],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
            rates[name].append(float(done.stdout.splitlines()[-1]))
        write(rates)  # a run that is stopped keeps its rounds
    print(json.dumps(kept("against_trl"), indent=1))


def write(rates: Mapping[str, Sequence[float]]) -> None:
    """Write medians over the rounds so far, and those of the ratios within a round."""
    medians = {name: round(statistics.median(found), 1) for name, found in rates.items()}
    over = {
        name: round(statistics.median(map(truediv, found, rates["trl"])), 3)
        for name, found in rates.items()
    }
    report = {
        "tokens_per_processor_second": medians,
        "over_trl": over,
        "rounds": {name: [round(rate, 1) for rate in found] for name, found in rates.items()},
        "environment": environment(),
    }
    keep("against_trl", report)


if __name__ == "__main__":
    main()
