"""What each benchmark measured last: a line each of results/measured.jsonl.gz, under its name.

python -m benchmarks.measured               # the names
python -m benchmarks.measured serving       # what benchmarks.serving measured, as JSON
"""

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

from lcia.files import json_bytes, write_bytes

MEASURED = Path(__file__).parent / "results" / "measured.jsonl.gz"


def kept(name: str, path: Path = MEASURED) -> Any:
    """Return what the benchmark of that name measured last; None where nothing is kept."""
    return _all(path).get(name)


def keep(name: str, found: Any, path: Path = MEASURED) -> None:
    """Keep what a benchmark measured, in the place of what it measured before."""
    everything = _all(path) | {name: found}
    lines = [
        json_bytes({"benchmark": benchmark, "found": everything[benchmark]}) + b"\n"
        for benchmark in sorted(everything)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, gzip.compress(b"".join(lines), mtime=0))


def _all(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    lines = map(json.loads, gzip.decompress(path.read_bytes()).splitlines())
    return {line["benchmark"]: line["found"] for line in lines}


def main() -> None:
    """Print what is kept."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", nargs="?", help="of a benchmark; else all names are printed")
    parser.add_argument("--results", type=Path, default=MEASURED)
    asked = parser.parse_args()
    names = sorted(_all(asked.results))
    if asked.name is None:
        print("\n".join(names))
    elif asked.name in names:
        print(json.dumps(kept(asked.name, asked.results), indent=1))
    else:
        parser.error(f"{asked.results} has no {asked.name!r}; it has {', '.join(names)}.")


if __name__ == "__main__":
    main()
