"""What a token costs the engine in processor time, beside another commit or another dtype.

    git worktree add --detach ../before COMMIT
    PYTHONPATH=tests python -m benchmarks.serving_steps --against ../before/src
    python -m benchmarks.serving_steps --model smollm2-135m --dtypes float32 bfloat16

Each contestant is a process; they take turns, round after round, so that what else the machine does
meets all of them. A round is 1, 8 or 32 answers at once, by the base model and two adapters in
turn, greedy and drawn; its tokens are divided by the processor time of the whole process, which
waiting does not count. Prints the medians, and the ratio of each to the first contestant, round by
round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SIZES = (1, 8, 32)
TOKENS = 64


def work(store: Path, dtype: str) -> None:
    """Answer in this process: one round for every line of the input, a number of answers."""
    import torch

    from lcia.learner import Store, load_host
    from lcia.serving.engine.engine import Engine
    from lcia.serving.engine.job import Job, Prompt
    from lcia.serving.engine.sampling import Sampling

    torch.set_num_threads(1)
    opened = Store.open(store)
    engine = Engine(load_host(opened.config.model_copy(update={"dtype": dtype})).base)
    adapters = [None, *opened.current.adapters.values()]
    engine.start()
    for line in sys.stdin:
        count = int(line)
        told: list[int] = []
        done = threading.Event()

        def listen(delta: Any, told: list[int] = told, count: int = count) -> None:
            if delta.last:
                assert delta.error is None, delta.error
                told.append(delta.tokens)
                if len(told) == count:
                    done.set()  # noqa: B023 - waited for below

        started = time.process_time()
        for i in range(count):
            sampling = Sampling(temperature=0.8, top_p=0.9, seed=i) if i % 4 == 3 else Sampling()
            prompt = Prompt(
                ids=tuple(range(10, 42)),
                adapter=adapters[i % 3],
                max_new_tokens=TOKENS,
                sampling=sampling,
            )
            engine.submit(Job(prompt=prompt, listener=listen))
        done.wait()
        print(sum(told) / (time.process_time() - started), flush=True)
    engine.stop()


def make(root: Path, model: str) -> None:
    """Make an assistant of two groups with the lcia that is on the path."""
    from conftest import make_task
    from lcia.config import AssistantConfig
    from lcia.learner import ContinualLearner

    training = {"max_steps": 2, "learning_rate": 3e-3, "save_steps": 100}
    config = AssistantConfig(model=model, dtype="float32", training=training)
    learner = ContinualLearner.create(root, config)
    learner.learn(make_task("colours", "Say the letter.", {"red": "r", "green": "g"}))
    learner.learn(make_task("numbers", "Write this number as a digit.", {"one": "1", "two": "2"}))


def environment(source: Path) -> dict[str, str]:
    """Return the environment of a process of another ``src`` folder."""
    path = os.pathsep.join(map(str, (source, ROOT, ROOT / "tests")))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


class Contestant:
    """A process that measures rounds."""

    def __init__(self, name: str, source: Path, store: Path, dtype: str) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--work", store, "--dtypes", dtype],
            env=environment(source),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def round(self, count: int) -> float:
        """Return the tokens per processor second of so many answers at once."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with {self._process.wait()}.")
        return float(line)

    def end(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, help="the src folder of another checkout")
    parser.add_argument("--model", help="an embedded model; default: the tests' tiny one")
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.make:
        make(asked.make, asked.model)
        return
    if asked.work:
        work(asked.work, asked.dtypes[0])
        return
    sys.path.insert(0, str(ROOT / "tests"))
    from conftest import save_tiny_model

    with tempfile.TemporaryDirectory() as scratch:
        model = asked.model or save_tiny_model(Path(scratch) / "model")
        store = Path(scratch) / "assistant"
        # The older source makes the assistant: a later lcia reads it, not the other way round.
        source = asked.against or ROOT / "src"
        making = [sys.executable, __file__, "--make", str(store), "--model", str(model)]
        subprocess.run(making, env=environment(source), check=True)
        contestants = [Contestant(dtype, ROOT / "src", store, dtype) for dtype in asked.dtypes]
        if asked.against:
            contestants.append(Contestant("against", asked.against, store, asked.dtypes[0]))
        found: dict[str, Any] = {}
        for count in SIZES:
            rates: dict[str, list[float]] = {one.name: [] for one in contestants}
            for number in range(asked.rounds + 1):
                for one in contestants[:: 1 if number % 2 else -1]:
                    rate = one.round(count)
                    if number:  # the first round of each is for whatever is done once
                        rates[one.name].append(rate)
            first = rates[contestants[0].name]
            found[f"{count} at once"] = {
                name: {
                    "tokens_per_processor_second": round(statistics.median(measured), 1),
                    "first_over_it": round(
                        statistics.median(a / b for a, b in zip(first, measured, strict=True)), 3
                    ),
                }
                for name, measured in rates.items()
            }
        for one in contestants:
            one.end()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
