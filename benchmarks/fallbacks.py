"""How often the closed form of beta applies: ``python -m benchmarks.fallbacks``.

SmolLM2-135M learns one skill plainly and then another with every rule's average beside it. Rank,
learning rate, batch size and number of steps vary one at a time. Kept as
fallbacks, a row a setting: skips what is there, and prints a table.
"""

import argparse
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.measured import MEASURED, keep, kept
from benchmarks.retraining import Setting, new_model, train, trainable
from lcia.data import Task, load_stream
from lcia.ema import DynamicEMA
from lcia.learner.outcome import environment
from lcia.models.host import AdapterHost
from lcia.models.loading import load_model

RULES = ("paper", "release", "toolkit", "curvature")

PLAIN = Setting(steps=24)
SETTINGS = (
    PLAIN,
    replace(PLAIN, rank=2),
    replace(PLAIN, rank=64),
    replace(PLAIN, learning_rate=2e-4),
    replace(PLAIN, learning_rate=5e-5),
    replace(PLAIN, batch_size=2),
    replace(PLAIN, batch_size=32),
    replace(PLAIN, steps=72),
)


def measure(host: AdapterHost, earlier: Task, later: Task, setting: Setting) -> dict[str, Any]:
    """Return, for each rule, what its average did on the later task."""
    model = new_model(host, setting)
    train(host, model, earlier, setting)
    parameters = trainable(model)
    start = {name: p.detach().clone() for name, p in parameters.items()}
    averages = {rule: DynamicEMA(parameters.items(), rule=rule) for rule in RULES}
    train(host, model, later, setting, lambda: [a.update() for a in averages.values()] and None)
    way = _distance(parameters, start)
    return {
        rule: {
            **average.stats().as_dict(),
            "closed_form": 1 - sum(average.stats().shares.values()),
            "share_of_way": _distance(average.shadow, start) / way,
        }
        for rule, average in averages.items()
    }


def _distance(there: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> float:
    squares = [float((there[name].detach() - tensor).norm()) ** 2 for name, tensor in here.items()]
    return sum(squares) ** 0.5


def print_rows(measured: Mapping[str, Any]) -> None:
    """Print what each rule's average did with one setting."""
    setting = measured["setting"]
    for rule, row in measured["rules"].items():
        print(
            f"rank {setting['rank']:2}  lr {setting['learning_rate']:.0e}  batch "
            f"{setting['batch_size']:2}  steps {setting['steps']}  {rule:9}  closed form "
            f"{row['closed_form']:4.0%}  beta {row['beta_mean']:.3f}  horizon "
            f"{row['horizon_steps']:6.1f} steps  way {row['share_of_way']:4.0%}",
            flush=True,
        )


def main() -> None:
    """Measure every setting that is not measured, and print all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=MEASURED)
    results: Path = parser.parse_args().results
    measured = kept("fallbacks", results) or []
    for row in measured:
        print_rows(row)
    done = [row["setting"] for row in measured]
    left = [setting for setting in SETTINGS if asdict(setting) not in done]
    if not left:
        return
    skills = {task.name: task for task in load_stream("builtin:skills")}
    host = AdapterHost(load_model("smollm2-135m", dtype="float32"), max_prompt_tokens=128)
    for setting in left:
        found = measure(host, skills["dates_german"], skills["populations_german"], setting)
        row = {"setting": asdict(setting), "rules": found, "environment": environment()}
        measured.append(row)
        keep("fallbacks", measured, results)  # at once: stopped, it goes on behind it
        print_rows(row)


if __name__ == "__main__":
    main()
