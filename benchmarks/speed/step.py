"""What keeping freed memory saves of a training step: ``python -m benchmarks.speed.step``.

Each measurement is a process of its own, for the setting acts on a whole process; they alternate.
Prints medians of the time and of the processor time a step; kept as step.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

from benchmarks.measured import keep
from benchmarks.retraining import Setting, new_model, train
from lcia.data import load_stream
from lcia.learner.outcome import environment
from lcia.memory import keep_freed_memory
from lcia.models.host import AdapterHost
from lcia.models.loading import load_model

SETTING = Setting(steps=12, batch_size=8)
WARM_UP = 2


def measure(*, keep: bool) -> dict[str, float]:
    """Return seconds and processor seconds of a step, medians of one training."""
    if keep:
        keep_freed_memory()
    task = next(task for task in load_stream("builtin:skills") if task.name == "dates_german")
    host = AdapterHost(load_model("smollm2-135m"), max_prompt_tokens=128)
    clock: list[tuple[float, float]] = []

    def tick() -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        clock.append((time.perf_counter(), usage.ru_utime + usage.ru_stime))

    train(host, new_model(host, SETTING), task, SETTING, tick)
    steps = list(zip(clock[WARM_UP:], clock[WARM_UP + 1 :], strict=False))
    wall, cpu = (statistics.median(b[i] - a[i] for a, b in steps) for i in (0, 1))
    return {"seconds": wall, "processor_seconds": cpu}


def main() -> None:
    """Alternate the two, print and write the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--one", choices=("plain", "kept"), help="measure once, print JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(keep=arguments.one == "kept")))
        return
    found: dict[str, list[dict[str, float]]] = {"plain": [], "kept": []}
    for _ in range(arguments.repeat):
        for one, measured in found.items():
            command = [sys.executable, "-m", "benchmarks.speed.step", "--one", one]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            measured.append(json.loads(output.splitlines()[-1]))
    medians = {
        one: {key: statistics.median(m[key] for m in measured) for key in measured[0]}
        for one, measured in found.items()
    }
    for key in ("seconds", "processor_seconds"):
        plain, kept = medians["plain"][key], medians["kept"][key]
        print(f"{key} a step: plain {plain:.3f}, kept {kept:.3f}, ratio {plain / kept:.2f}")
    report = {"medians": medians, "repeat": arguments.repeat, "environment": environment()}
    keep("step", report)


if __name__ == "__main__":
    main()
