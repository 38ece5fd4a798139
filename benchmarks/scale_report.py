"""What ``benchmarks.scale`` measured: table, plot, a cost model, a simulated fleet.

    python -m benchmarks.scale_report --folder WORK  # kept as scale; docs/scale.png
    python -m benchmarks.scale_report                # prints it again

The cost model is fitted on every second measurement; its error is stated on the others. The fleet
is a simulation: servers with room for so many adapters, least recently used first out, and requests
whose group follows Zipf's law.
"""

import argparse
import json
import random
from bisect import bisect
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

from benchmarks.measured import keep, kept
from benchmarks.scale import lines_of
from lcia.files import files_below
from lcia.learner.outcome import environment
from lcia.reports.plots import save

PLOT = Path(__file__).parents[1] / "docs" / "scale.png"
TERMS = ("fixed", "answers", "version_mb")
NEAR = 3
"""Tasks measured in full around a number of tasks, whose median stands for it."""

GROUPS, SERVERS, REQUESTS = 10_000, 8, 100_000


def collect(folder: Path) -> dict[str, Any]:
    """Return all measurements of a folder that ``benchmarks.scale`` wrote."""
    versions = folder / "assistant" / "versions"
    tasks = []
    for record in lines_of(folder / "tasks.jsonl"):
        written = sum(p.stat().st_size for p in files_below(versions / f"{record['task']:04d}"))
        kept = ("task", "steps", "answers", "outside_training", "processor_outside_training")
        found = {name: record[name] for name in kept}
        real = record.get("real", True)
        found["answers"] *= real  # of the others, answers are empty texts
        tasks.append({**found, "real": real, "version_bytes": written})
    return {
        "tasks": tasks,
        "checkpoints": lines_of(folder / "checkpoints.jsonl"),
        "environment": environment(),
    }


def features(record: dict[str, Any]) -> list[float]:
    """Return what the model knows of a task, in the order of ``TERMS``."""
    return [1.0, record["answers"], record["version_bytes"] / 1e6]


def cost_model(tasks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Fit processor seconds outside training; return coefficients and error on other tasks."""
    known = [record for record in tasks if record["task"] > 1]  # the first imports, too
    cost = np.array([record["processor_outside_training"] for record in known])
    given = np.array([features(record) for record in known])
    fitted = np.arange(len(known)) % 2 == 0
    weights = (1 / cost[fitted])[:, None]  # errors count in proportion
    found, *_ = np.linalg.lstsq(given[fitted] * weights, np.ones(int(fitted.sum())), rcond=None)
    error = np.abs(given @ found / cost - 1)[~fitted]
    real = np.array([record["real"] for record in known])[~fitted]
    return {
        "coefficients": {name: float(value) for name, value in zip(TERMS, found, strict=True)},
        "fitted_on": int(fitted.sum()),
        "checked_on": len(error),
        "median_error_percent": round(100 * float(np.median(error)), 1),
        "median_error_percent_in_full": round(100 * float(np.median(error[real])), 1),
        "p90_error_percent": round(100 * float(np.quantile(error, 0.9)), 1),
    }


def at(tasks: Sequence[dict[str, Any]], number: int, key: str) -> float | None:
    """Return the median over the last tasks up to ``number`` that were learned in full."""
    near = [r[key] for r in tasks if r["real"] and number - NEAR < r["task"] <= number]
    return round(median(near), 3) if near else None


def table(report: dict[str, Any]) -> str:
    """Return the checkpoints as a table in Markdown."""
    head = (
        "tasks",
        "groups",
        "outside training, s",
        "processor s",
        "store, MB",
        "version, KB",
        "open, s",
        "verify, s",
        "route p50 / p99, ms",
    )
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for point in report["checkpoints"]:
        count = point["tasks"]
        cells = (
            count,
            point["groups"],
            at(report["tasks"], count, "outside_training"),
            at(report["tasks"], count, "processor_outside_training"),
            f"{point['bytes'] / 1e6:.1f}",
            f"{sum(point['version_bytes'].values()) / 1e3:.0f}",
            f"{point['open_s']:.2f}",
            f"{point['verify_s']:.1f}",
            f"{point['route_p50_ms']:.2f} / {point['route_p99_ms']:.2f}",
        )
        lines.append(" | ".join(map(str, cells)))
    return "\n".join(f"| {line} |" for line in lines)


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw processor seconds over tasks, and the size of the store."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4))
    for real, label in ((False, "without the model"), (True, "in full")):
        chosen = [r for r in report["tasks"] if r["real"] == real and r["task"] > 1]
        if chosen:
            seconds = [r["processor_outside_training"] for r in chosen]
            left.plot([r["task"] for r in chosen], seconds, ".", markersize=3, label=label)
    left.set(xlabel="task", ylabel="processor seconds outside training", ylim=(0, None))
    left.legend()
    points = report["checkpoints"]
    right.plot([p["tasks"] for p in points], [p["bytes"] / 1e6 for p in points], "o-")
    right.set(xlabel="tasks", ylabel="store, MB", ylim=(0, None))
    figure.tight_layout()
    save(figure, path, dpi=110)


def hit_rate(*, zipf: float, slots: int, by_group: bool, seed: int = 0) -> float:
    """Return the share of requests whose adapter is loaded where they arrive.

    Args:
        zipf: exponent: the k-th most asked group gets a share in proportion to 1 / k ** zipf.
        slots: adapters that a server holds.
        by_group: requests of a group go to one server; else to any.
        seed: of the traffic.
    """
    dice = random.Random(seed)
    bounds = list(accumulate(1 / (k + 1) ** zipf for k in range(GROUPS)))
    homes = [dice.randrange(SERVERS) for _ in range(GROUPS)]
    held: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(SERVERS)]
    hits = 0
    warm = REQUESTS // 2
    for number in range(REQUESTS):
        group = bisect(bounds, dice.random() * bounds[-1])
        own = held[homes[group] if by_group else dice.randrange(SERVERS)]
        if group in own:
            own.move_to_end(group)
            hits += number >= warm
        else:
            own[group] = None
            if len(own) > slots:
                own.popitem(last=False)
    return hits / (REQUESTS - warm)


def fleet() -> list[dict[str, Any]]:
    """Return hit rates over exponents, slots and ways to spread requests."""
    return [
        {
            "zipf": zipf,
            "slots": slots,
            "any_server": round(hit_rate(zipf=zipf, slots=slots, by_group=False), 3),
            "by_group": round(hit_rate(zipf=zipf, slots=slots, by_group=True), 3),
        }
        for zipf in (0.8, 1.0, 1.2)
        for slots in (32, 128, 512)
    ]


def beside(report: dict[str, Any]) -> str:
    """Return what a task costs in a small store and in a large one, learned in turns."""
    rows = report["beside"]
    middle = median(row["task"] for row in rows)
    small, large = ([r for r in rows if (r["task"] > middle) == big] for big in (False, True))
    lines = []
    for name in ("processor_outside_training", "outside_training"):
        few, many = (median(row[name] for row in found) for found in (small, large))
        lines.append(f"{name}: {few:.2f} s and {many:.2f} s, {many / few:.2f} x")
    first, last = small[0]["task"], large[-1]["task"]
    return f"tasks from {first} on, and up to {last}:\n" + "\n".join(lines)


def tell(report: dict[str, Any]) -> None:
    """Print the tables of docs/scale.md."""
    if report["beside"]:
        print(beside(report), end="\n\n")
    print(table(report), end="\n\n")
    print(json.dumps(report["model"], indent=1), end="\n\n")
    print("| Zipf | slots a server | any server | by group |\n| --- | --- | --- | --- |")
    for row in report["fleet"]:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    full = [r["processor_outside_training"] for r in report["tasks"] if r["real"]]
    print(f"\n{len(full)} tasks in full, mean {fmean(full):.2f} processor seconds outside training")


def main() -> None:
    """Collect, fit, simulate, draw; or print what was."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="of benchmarks.scale; else the results")
    parser.add_argument("--beside", type=Path, help="beside.jsonl of benchmarks.scale --beside")
    asked = parser.parse_args()
    if asked.folder is not None:
        report = collect(asked.folder)
        report["beside"] = lines_of(asked.beside) if asked.beside else []
        report |= {"model": cost_model(report["tasks"]), "fleet": fleet()}
        keep("scale", report)
        plot(report, PLOT)
    tell(kept("scale"))


if __name__ == "__main__":
    main()
