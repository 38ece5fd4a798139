"""Speed of grouping: ``python -m benchmarks.speed.grouping``.

All pairs of two sets of texts against one scikit-learn fit a pair, then how routing and deciding
grow with the number of stored instructions. Instructions are drawn from a Zipf vocabulary: each
group has 30 words of its own, all share 2,000 others.
"""

import argparse
import os
import platform
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measured import MEASURED, keep
from lcia.grouping import (
    GroupingConfig,
    InstructionCodebook,
    InstructionRecipe,
    Router,
    pair_similarity,
)

PER_GROUP = 100
SIZES = (100, 1_000, 10_000, 100_000)
QUERIES = 200
MEASURED_PAIRS = 40_000
WHOLE = InstructionRecipe(kind="whole")


def instructions(count: int, *, seed: int) -> list[str]:
    """Return ``count`` unique instructions of 15 to 40 words, ``PER_GROUP`` a group."""
    draw = np.random.default_rng(seed)
    shared = [f"common{n}" for n in range(2_000)]
    texts = []
    for number in range(count):
        length = int(draw.integers(15, 41))
        ranks = np.minimum(draw.zipf(1.3, length), len(shared)) - 1
        own = draw.integers(0, 30, length // 4)
        words = [shared[rank] for rank in ranks]
        words += [f"topic{number // PER_GROUP}x{n}" for n in own]
        texts.append(" ".join([*words, f"variant{number}"]))
    return texts


def seconds(call: Callable[[], Any]) -> float:
    """Return how long ``call`` takes: the best of three if it is short."""
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
        if best > 2:
            break
    return best


def latencies(call: Callable[[Any], Any], items: list[Any]) -> list[float]:
    """Return how long ``call`` takes on each item."""
    times = []
    for item in items:
        started = time.perf_counter()
        call(item)
        times.append(time.perf_counter() - started)
    return times


def pair_by_pair(a: list[str], b: list[str]) -> np.ndarray:
    """Return the similarity of a[i] and b[i] for every i, by one scikit-learn fit each."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = (
        TfidfVectorizer(stop_words="english").fit_transform(pair) for pair in zip(a, b, strict=True)
    )
    return np.array([(v[[0]] @ v[[1]].T).sum() for v in vectors])


def compare(size: int) -> dict[str, Any]:
    """Return the time and the largest difference at ``size`` x ``size`` texts."""
    a, b = instructions(size, seed=1), instructions(size, seed=2)
    ours_s = seconds(lambda: pair_similarity(a, b))
    similarity = pair_similarity(a, b)
    pairs = [(i, j) for i in range(size) for j in range(size)]
    if len(pairs) > MEASURED_PAIRS:
        chosen = np.random.default_rng(3).choice(len(pairs), MEASURED_PAIRS // 4, replace=False)
        pairs = [pairs[k] for k in chosen]
    left, right = zip(*pairs, strict=True)
    started = time.perf_counter()
    wanted = pair_by_pair([a[i] for i in left], [b[j] for j in right])
    sklearn_s = (time.perf_counter() - started) * size * size / len(pairs)
    return {
        "size": size,
        "lcia_s": ours_s,
        "sklearn_s": sklearn_s,
        "sklearn_pairs_measured": len(pairs),
        "extrapolated": len(pairs) < size * size,
        "times_faster": sklearn_s / ours_s,
        "largest_difference": float(np.abs(similarity[list(left), list(right)] - wanted).max()),
    }


def grow(size: int, aggregate: str) -> dict[str, Any]:
    """Return latencies and memory with ``size`` stored instructions."""
    texts = instructions(size, seed=1)
    extractions = [
        WHOLE.fit(texts[start : start + PER_GROUP]) for start in range(0, size, PER_GROUP)
    ]
    codebook = InstructionCodebook(GroupingConfig(aggregate=aggregate))
    tracemalloc.start()
    for number, extraction in enumerate(extractions):
        codebook.add(None, extraction, task=f"task{number}")
    bytes_used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    router = Router(codebook)
    queries = instructions(QUERIES, seed=5)
    router.route_many(queries[:5])
    times = latencies(router.route, queries)
    decide_s = seconds(lambda: codebook.decide(queries[:10]))
    added = [WHOLE.fit([f"one more number {n}"]) for n in range(50)]
    adds = latencies(lambda extraction: codebook.add(None, extraction, task="more"), added)
    return {
        "stored": size,
        "groups": len(extractions),
        "aggregate": aggregate,
        "route_p50_ms": 1e3 * float(np.quantile(times, 0.5)),
        "route_p99_ms": 1e3 * float(np.quantile(times, 0.99)),
        "decide_10_ms": 1e3 * decide_s,
        "add_p50_ms": 1e3 * float(np.quantile(adds, 0.5)),
        "bytes_an_instruction": bytes_used / size,
    }


def main() -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=MEASURED)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    result: dict[str, Any] = {
        "machine": f"{platform.machine()}, one core",
        "pairs": [],
        "growth": [],
    }
    for size in (50, 200, 1_000):
        row = compare(size)
        result["pairs"].append(row)
        print(
            f"{size}x{size}: {1e3 * row['lcia_s']:.1f} ms, scikit-learn {row['sklearn_s']:.1f} s"
            f"{' (extrapolated)' if row['extrapolated'] else ''}: {row['times_faster']:,.0f} times;"
            f" difference {row['largest_difference']:.1e}"
        )
    for aggregate in ("best", "mean"):
        for size in SIZES:
            row = grow(size, aggregate)
            result["growth"].append(row)
            print({key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()})
    keep("grouping_speed", result, arguments.results)


if __name__ == "__main__":
    main()
