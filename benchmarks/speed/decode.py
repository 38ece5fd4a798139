"""One decoding step of the base model: as transformers runs it, and as the engine prepares it.

    python -m benchmarks.speed.decode       # a table, kept as decode
    python -m benchmarks.speed.decode --products    # which dtype multiplies faster

The embedded model, all threads of the machine. Both take turns in one process, on the same cache;
the median of their steps, in milliseconds of wall time, so nothing else may be at work. The bound
is what the memory allows: the weights' bytes over what this machine reads in a second.
"""

import argparse
import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from benchmarks.measured import MEASURED, keep
from lcia.learner.outcome import environment
from lcia.models import resolve_dtype
from lcia.models.batches import cache_argument
from lcia.models.loading import load_model
from lcia.serving.engine.arena import Arena
from lcia.serving.engine.processor import prepare

DTYPES, ROWS, CONTEXTS = ("bfloat16", "float32"), (1, 8, 32), (60, 500)
TURNS, STEPS = 4, 10


class Answers:
    """Rows of one length whose answers grow."""

    def __init__(self, model: Any, *, rows: int, context: int) -> None:
        self.model, self.rows, name = model, rows, cache_argument(model)
        ids = (torch.arange(rows * context) % 4000 + 5).view(rows, context)
        cache = DynamicCache()
        model(input_ids=ids, **{name: cache})
        self.arena = Arena(layers=model.config.num_hidden_layers)
        self.arena.join(cache, [context] * rows, range(rows))
        self.options = {name: self.arena, "use_cache": True, "logits_to_keep": 1}

    def step(self) -> float:
        """Take one step; return its seconds."""
        begun = time.perf_counter()
        self.arena.make_room()
        places = [[length] for length in self.arena.lengths]
        self.model(
            input_ids=torch.full((self.rows, 1), 7),
            attention_mask=self.arena.mask("cpu").long(),
            position_ids=torch.tensor(places),
            **self.options,
        )
        self.arena.advance()
        return time.perf_counter() - begun


@torch.inference_mode()
def measure(model: Any, *, rows: int, context: int) -> dict[str, float]:
    """Return the median milliseconds of a step, plain and prepared."""
    answers = Answers(model, rows=rows, context=context)
    seconds: dict[str, list[float]] = {"plain": [], "prepared": []}
    for _ in range(TURNS):
        for kind, found in seconds.items():
            with torch.inference_mode(False):
                restore = prepare(model) if kind == "prepared" else lambda: None
            answers.step()  # the first one makes its kernels
            found += [answers.step() for _ in range(STEPS)]
            restore()
    return {kind: round(1000 * statistics.median(found), 2) for kind, found in seconds.items()}


def bandwidth() -> float:
    """Return the bytes a second that this machine reads, at its best."""
    block = torch.ones(1 << 28)
    taken = []
    for _ in range(10):
        begun = time.perf_counter()
        block.sum()
        taken.append(time.perf_counter() - begun)
    return block.numel() * block.element_size() / min(taken)


WIDTH, INNER, LAYERS = 576, 1536, 30
ROUNDS, SECONDS = 5, 0.3


def speed(dtype: torch.dtype, rows: int) -> float:
    """Return GFLOP/s of a layer's product, the weights of all layers in turn."""
    inputs = torch.randn(rows, WIDTH, dtype=dtype)
    weights = [torch.randn(INNER, WIDTH, dtype=dtype) for _ in range(LAYERS)]
    done, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < SECONDS:
        for weight in weights:
            torch.nn.functional.linear(inputs, weight)
        done += LAYERS
    return 2e-9 * rows * WIDTH * INNER * done / seconds


def products() -> None:
    """Print which dtype multiplies faster, in GFLOP/s, as a layer of SmolLM2-135M multiplies.

    One thread, the dtypes taking turns: for one row (a token of one answer), 40 rows (a batch of
    them) and 2,400 rows (a batch of prompts); and what ``dtype: auto`` chooses.
    """
    torch.set_num_threads(1)
    dtypes = (torch.float32, torch.bfloat16)
    for rows in (1, 40, 2400):
        found = {dtype: [] for dtype in dtypes}
        for _ in range(ROUNDS):
            for dtype in dtypes:
                found[dtype].append(speed(dtype, rows))
        medians = {str(d).removeprefix("torch."): statistics.median(v) for d, v in found.items()}
        print(f"{rows:5} rows  ", "  ".join(f"{d} {v:5.0f} GFLOP/s" for d, v in medians.items()))
    print(f"{torch.cpu.get_capabilities()['cpu_name']}; auto is {resolve_dtype('auto')}")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=MEASURED)
    parser.add_argument("--products", action="store_true", help="which dtype is faster, alone")
    options = parser.parse_args()
    if options.products:
        products()
        return
    read, rows = bandwidth(), []
    print("| dtype | rows | context | plain, ms | prepared, ms | plain / prepared | of the bound |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for dtype in DTYPES:
        model = load_model("smollm2-135m", dtype=dtype).model
        bound = 1000 * sum(p.numel() * p.element_size() for p in model.parameters()) / read
        for count, context in itertools.product(ROWS, CONTEXTS):
            found = measure(model, rows=count, context=context)
            rows.append({"dtype": dtype, "rows": count, "context": context, **found})
            plain, prepared = found["plain"], found["prepared"]
            cells = (
                f"{plain:.1f} | {prepared:.1f} | {plain / prepared:.2f} | {bound / prepared:.2f}"
            )
            print(f"| {dtype} | {count} | {context} | {cells} |", flush=True)
    found = {"rows": rows, "machine": environment(), "reads_gb_per_s": read / 1e9}
    keep("decode", found, options.results)


if __name__ == "__main__":
    main()
