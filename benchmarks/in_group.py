"""What a group keeps and learns when it is retrained: ``python -m benchmarks.in_group``.

An adapter learns one skill plainly and then another. The second training is run once; its steps
feed every rule's average, and its squared gradients every merge, so that all are compared on one
trajectory. Each outcome then answers the held-out samples of both skills. Kept
as in_group, a row a pair of skills and seed: skips what is there, and prints the means. `--table`
only prints.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measured import MEASURED, keep, kept
from benchmarks.retraining import (
    Setting,
    new_model,
    steps_of,
    train,
    trainable,
)
from lcia.data import Task, load_stream
from lcia.ema import DynamicEMA, PrecisionMerge
from lcia.evaluation.generate import evaluate, scores_percent
from lcia.grouping import GroupingConfig, InstructionCodebook, Router
from lcia.learner import instructions_of
from lcia.learner.outcome import environment
from lcia.models.host import AdapterHost
from lcia.models.loading import load_model

PAIRS = (
    ("dates_german", "populations_german"),
    ("dates_spanish", "dates_german"),
    ("continents", "sentiments"),
)
RULES: Mapping[str, Mapping[str, Any]] = {
    "fixed 0.9": {"name": "fixed", "beta": 0.9},
    "fixed 0.95": {"name": "fixed", "beta": 0.95},
    "fixed 0.99": {"name": "fixed", "beta": 0.99},
    "paper": {"name": "paper"},
    "release": {"name": "release"},
    "toolkit": {"name": "toolkit"},
    "curvature": {"name": "curvature"},
    "horizon 0.5": {"name": "horizon", "share": 0.5},
    "horizon 1": {"name": "horizon", "share": 1.0},
}
MERGED = ("plain", "release", "horizon 0.5")
OLD_WEIGHTS = (0.1, 0.3, 1.0, 3.0)
INTERPOLATIONS = (0.3, 0.5, 0.7)

Values = dict[str, Tensor]


def outcomes(
    host: AdapterHost, earlier: Task, later: Task, setting: Setting
) -> Iterator[tuple[str, Any]]:
    """Yield every way to end the later task: its name and the model with those parameters."""
    model = new_model(host, setting)
    parameters = trainable(model)
    first = PrecisionMerge(parameters.items())
    train(host, model, earlier, setting, first.accumulate)
    precision, old = first.precision(), _copy(parameters)
    yield "before", model

    steps = steps_of(later, setting)
    rules = {n: {**r, "max_steps": steps} if "share" in r else r for n, r in RULES.items()}
    averages = {name: DynamicEMA(parameters.items(), rule=rule) for name, rule in rules.items()}
    merges = {
        weight: PrecisionMerge(parameters.items(), old_weight=weight, precision_old=precision)
        for weight in OLD_WEIGHTS
    }

    def after_step() -> None:
        for average in averages.values():
            average.update()
        for merge in merges.values():
            merge.accumulate()

    train(host, model, later, setting, after_step)
    ends = {"plain": _copy(parameters)}
    ends.update({name: _copy(average.shadow) for name, average in averages.items()})
    for name, end in ends.items():
        yield name, _with(model, parameters, end)
        for weight, merge in merges.items() if name in MERGED else ():
            _with(model, parameters, end)
            merge.merge(old)
            yield f"{name}, merged {weight}", model
    for share in INTERPOLATIONS:
        between = {name: torch.lerp(old[name], t, share) for name, t in ends["plain"].items()}
        yield f"{share} of the way", _with(model, parameters, between)


def _copy(tensors: Mapping[str, Tensor]) -> Values:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _with(model: Any, parameters: Mapping[str, Tensor], values: Values) -> Any:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
    return model


def measure(host: AdapterHost, earlier: Task, later: Task, setting: Setting) -> dict[str, Any]:
    """Return outcome to the scores of both tasks, in percent."""
    codebook = InstructionCodebook(GroupingConfig(groups="one"))
    codebook.add(None, instructions_of(earlier), task=earlier.name, prompts=[])
    with tempfile.TemporaryDirectory() as folder:
        saved: dict[str, Path] = {}
        for name, model in outcomes(host, earlier, later, setting):
            saved[name] = Path(folder) / str(len(saved))
            model.save_pretrained(saved[name])
        host.clear()
        return {name: _scores(host, codebook, path, earlier, later) for name, path in saved.items()}


def _scores(
    host: AdapterHost, codebook: InstructionCodebook, adapter: Path, *tasks: Task
) -> list[float]:
    predictions = evaluate(
        host,
        tasks,
        route=Router(codebook).route,
        adapters={codebook.groups[0].id: (adapter.name, adapter)},
        batch_size=40,
    )
    host.clear()
    return list(scores_percent(predictions).values())


def print_table(records: list[dict[str, Any]], tell: Callable[[str], None]) -> None:
    """Print the mean scores of every outcome over all pairs and seeds."""
    tell(f"{'outcome':26}{'earlier':>9}{'later':>9}{'mean':>9}   over {len(records)} retrainings")
    for name in records[-1]["scores"]:
        rows = [row["scores"][name] for row in records]
        earlier, later = (sum(row[i] for row in rows) / len(rows) for i in (0, 1))
        tell(f"{name:26}{earlier:9.1f}{later:9.1f}{(earlier + later) / 2:9.1f}")


def main() -> None:
    """Measure every pair and seed that is not measured, and print the means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=MEASURED)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, help="a task; default two epochs")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    records = kept("in_group", arguments.results) or []
    done = {(*row["pair"], row["setting"]["seed"]) for row in records}
    skills = {task.name: task for task in load_stream("builtin:skills")}
    wanted = [(*pair, seed) for seed in range(arguments.seeds) for pair in PAIRS]
    left = [] if arguments.table else [one for one in wanted if one not in done]
    host = AdapterHost(load_model("smollm2-135m"), max_prompt_tokens=128) if left else None
    for earlier, later, seed in left:
        assert host is not None
        setting = Setting(seed=seed, steps=arguments.steps)
        scores = measure(host, skills[earlier], skills[later], setting)
        row = {
            "pair": [earlier, later],
            "setting": asdict(setting),
            "scores": scores,
            "environment": environment(),
        }
        records.append(row)
        keep("in_group", records, arguments.results)
        print(f"{earlier} > {later}, seed {seed}")
        print_table([row], print)
    print_table(records, print)


if __name__ == "__main__":
    main()
