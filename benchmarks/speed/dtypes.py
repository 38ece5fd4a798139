"""Which dtype this processor multiplies faster: ``python -m benchmarks.speed.dtypes``.

Products as a layer of SmolLM2-135M makes them, one thread, the dtypes taking turns. Prints the
median speed in GFLOP/s for one row (a token of one answer), 40 rows (a batch of them) and 2,400
rows (a batch of prompts), and what ``dtype: auto`` chooses.
"""

import statistics
import time

import torch

from lcia.models import resolve_dtype

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


def main() -> None:
    """Measure and print."""
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


if __name__ == "__main__":
    main()
