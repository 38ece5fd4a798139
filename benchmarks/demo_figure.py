"""Draw the README's figure from the runs of ``make demo``: python -m benchmarks.demo_figure."""

from pathlib import Path

from lcia.learner import Store
from lcia.reports.plots import compare_figure

NAMES = {"sequential-seed0": "Sequential LoRA", "lcia-seed0": "lcia"}
RUNS = Path("runs/demo")

if __name__ == "__main__":
    matrices = {
        name: Store.open(RUNS / folder / "assistant").current.matrix()
        for folder, name in NAMES.items()
    }
    compare_figure(matrices, "docs/demo.png")
