"""Generated inputs, the same for a seed everywhere: ``python -m fuzz.cases --help``."""

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

KINDS = {"data": 0.5, "config": 0.3, "arguments": 0.2}
"""What is generated, and its share."""


def cases(place, count, *, seed=0, kinds=KINDS):
    """Yield (name, what tries it) of ``count`` inputs; it returns what is wrong, or None."""
    for kind in kinds:
        for i in range(round(count * KINDS[kind])):
            yield (
                f"{kind} {seed}/{i}",
                lambda k=kind, n=i: getattr(place, k)(Random(f"{k} {seed}/{n}")),
            )


def main():
    """Try them and print what is wrong."""
    from conftest import save_tiny_model
    from fuzz.place import Place

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--only", type=int, help="number of one input of --kind")
    options = parser.parse_args()
    started, wrong, tried = time.monotonic(), 0, Counter()
    with tempfile.TemporaryDirectory() as scratch:
        place = Place(Path(scratch), save_tiny_model(Path(scratch) / "tiny"))
        for name, case in cases(
            place, options.count, seed=options.seed, kinds=options.kind or KINDS
        ):
            if options.only is not None and name.rpartition("/")[2] != str(options.only):
                continue
            tried[name.split()[0]] += 1
            begun = time.monotonic()
            problem = case()
            if time.monotonic() - begun > 5:
                print(f"{name}: slow, {time.monotonic() - begun:.1f} s", flush=True)  # noqa: T201
            if problem:
                wrong += 1
                print(f"{name}: {problem}", flush=True)  # noqa: T201
    seconds = time.monotonic() - started
    print(f"{dict(tried)}: {wrong} wrong, {seconds:.0f} s")  # noqa: T201


if __name__ == "__main__":
    main()
