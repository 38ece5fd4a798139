"""All committed results as tables: ``python -m benchmarks.tables``.

Writes docs/benchmarks.md, docs/leaderboard.md, docs/frontier.png and the evidence in README.md.
``--demo`` draws README's figure, docs/demo.png, too.
"""

import argparse
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from benchmarks import leaderboard
from lcia.experiments.comparison import Comparison, Spread, compare
from lcia.experiments.finished import FinishedRun, find_runs
from lcia.experiments.running import AS_LISTED
from lcia.files import write_text
from lcia.reports.compare_page import markdown_table
from lcia.reports.plots import compare_figure
from lcia.reports.tables import comparison_tables, settings_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
README = ROOT / "README.md"
EVIDENCE = re.compile(r"(?<=<!-- evidence -->\n).*?(?=<!-- end of evidence -->)", re.DOTALL)
STREAMS: Mapping[str, str] = {
    "demo": "`lcia demo`: translations, numbers, facts",
    "superni/small": "six Super-NaturalInstructions tasks",
    "superni/small_batch4": "the same, larger steps",
    "superni/learning_rates": "the same, smaller steps",
    "superni/medium": "more tasks",
    "superni/shared_short": "five tasks that share two instructions",
    "demo-visual": "eight kinds of questions about images",
}
"""What README calls the folders of results in which ``sequential`` and ``lcia`` can be paired."""
RECIPES: Mapping[str, tuple[str, str]] = {
    "superni/small": ("superni/small.yaml", "methods as labelled"),
    "superni/small_batch4": (
        "superni/small.yaml",
        "batches of 4 at 4e-3, no warm-up: training.per_device_train_batch_size=4, "
        "training.learning_rate=0.004, training.warmup_steps=0",
    ),
    "superni/small_batch4_warmup": (
        "superni/small.yaml",
        "batches of 4 at 4e-3: training.per_device_train_batch_size=4, "
        "training.learning_rate=0.004",
    ),
    "superni/learning_rates": (
        "superni/small.yaml",
        "training.warmup_steps=0, batches and rates as labelled: 4 and 1e-3 where nothing is said",
    ),
    "superni/rules_mixed": ("superni/rules_mixed.yaml", "methods and rules as labelled"),
    "superni/rules_dialog": ("superni/rules_dialog.yaml", "methods and rules as labelled"),
    "superni/methods": ("superni/rules_mixed.yaml", "methods and rates as labelled"),
    "superni/medium": ("superni/medium.yaml", "methods as labelled"),
    "superni/medium_lr1e-3": ("superni/medium.yaml", "training.learning_rate=0.001"),
    "superni/shared": (
        "superni/shared.yaml",
        "methods as labelled; lcia-measured by an earlier criterion, on losses",
    ),
    "superni/shared_short": ("superni/shared_short.yaml", "methods as labelled"),
    "demo": ("../src/lcia/demo/recipe.yaml", "methods as labelled"),
    "demo-visual": ("demo-visual.yaml", ""),
}
"""Folder of results to the recipe under ``recipes/`` that they are of, and what was set over it."""

PAIR = ("sequential", "lcia")

HEAD = """# Benchmarks

Every table is what the command above it makes, written here by `python -m benchmarks.tables`.
`results.jsonl.gz` in that folder of `benchmarks/results` has each run's matrix, metrics, settings
(`lcia compare RUNS --results FILE` wrote it); with `--output FOLDER` the command also writes the
settings that differ and a page with matrices and scores over time. [study.md](study.md) says what
follows from them. A result without a revision is older than lcia's noting of it.
"""


def section(name: str, recipe: str, settings: str) -> Iterator[str]:
    """Yield the parts of the page about one folder of results."""
    runs, warnings = find_runs([RESULTS / name])
    labels = [run.label for run in runs]
    baseline = "sequential" if "sequential" in labels else labels[0]
    comparison = compare(runs, baseline=baseline, warnings=warnings)
    yield f"## {name}"
    yield "\n".join(_origin(name, recipe, settings, runs, comparison))
    for table in comparison_tables(comparison):
        yield markdown_table(table, level=3)
    differing = settings_table(comparison)
    if differing.rows and len(differing.columns) > 1:
        yield markdown_table(differing, level=3)


def _origin(
    name: str, recipe: str, settings: str, runs: Iterable[FinishedRun], comparison: Comparison
) -> Iterator[str]:
    hours = sum(run.metrics["seconds"] or 0 for run in runs) / 3600
    yield f"- Recipe: [{recipe}](../recipes/{recipe})" + (settings and f"; {settings}")
    command = f"lcia compare benchmarks/results/{name} --baseline {comparison.baseline}"
    yield f"- Command: `{command}`"
    yield f"- Machine: {_named(runs, 'processor', 'platform')}"
    yield f"- Revision: {_named(runs, 'revision')}; torch {_named(runs, 'torch')}"
    yield f"- Processor hours of learning and scoring, one thread a run: {hours:.1f}"
    yield from (f"- Mind: {line}" for line in comparison.warnings)


def _named(runs: Iterable[FinishedRun], *keys: str) -> str:
    """Return what the runs' environments say under the first of the keys that they have."""
    found = [[run.environment[key] for key in keys if key in run.environment] for run in runs]
    return ", ".join(dict.fromkeys(names[0] if names else "not recorded" for names in found))


def page() -> str:
    """Return the page as Markdown."""
    parts = [HEAD.rstrip()]
    for name, (recipe, settings) in RECIPES.items():
        parts += section(name, recipe, settings)
    return "\n\n".join(parts) + "\n"


def evidence() -> str:
    """Return README's table: every folder that has ``sequential`` and ``lcia`` as they are."""
    rows = {}
    for name in RECIPES:
        runs, _ = find_runs([RESULTS / name])
        of = {label: {r.key: r for r in runs if r.label == label} for label in PAIR}
        keys = [key for key in of["sequential"] if key in of["lcia"]]
        if not keys:
            continue
        tasks = len(of["lcia"][keys[0]].fingerprints)
        cells = [STREAMS[name], f"{tasks}", f"{len(keys)}"]
        for measure in ("average_accuracy", "forgetting"):
            for label in PAIR:
                spread = Spread.of(of[label][key].metrics[measure] for key in keys)
                assert spread is not None, f"{name}: {label} has no {measure}"
                deviation = "" if spread.std is None else f" ± {spread.std:.0f}"
                cells.append(f"{spread.mean:.0f}{deviation}")
        rows[name] = cells
    head = ["stream", "tasks", "runs"]
    head += ["accuracy, plain", "with lcia", "forgotten, plain", "with lcia"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    lines += [rows[name] for name in STREAMS]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def readme() -> str:
    """Return README.md with the evidence of now."""
    text, count = EVIDENCE.subn(evidence(), README.read_text(encoding="utf-8"))
    assert count == 1, "README.md has one place for the evidence"
    return text


def draw_demo() -> None:
    """Draw the scores of each task as ``lcia demo`` learns them, with seed 0."""
    names = {"sequential": "Sequential LoRA", "lcia": "lcia"}
    runs, _ = find_runs([RESULTS / "demo"])
    first = {run.label: run.matrix for run in runs if run.key == (0, AS_LISTED)}
    matrices = {name: first[label] for label, name in names.items()}
    compare_figure(matrices, str(ROOT / "docs" / "demo.png"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--demo", action="store_true", help="draw README's figure")
    asked = parser.parse_args()
    write_text(PAGE, page())
    leaderboard.write(RECIPES)
    write_text(README, readme())
    if asked.demo:
        draw_demo()
