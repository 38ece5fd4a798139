"""The finished sub-runs below some folders, and whether they can be compared.

A sub-run is a folder as ``lcia run`` leaves it, or a line of a ``results.jsonl``, which keeps what
comparisons read of many runs without their journals and predictions.
"""

import dataclasses
import gzip
import itertools
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lcia.config import AssistantConfig, parse_config, todays_names
from lcia.errors import ConfigError
from lcia.evaluation.matrix import AccuracyMatrix
from lcia.evaluation.metrics import MEASURES
from lcia.files import json_bytes, parse_json, read_bytes, read_json, read_jsonl, write_bytes
from lcia.learner import read_journal
from lcia.registry import METHODS
from lcia.reports.collect import step_records
from lcia.reports.data import StepRecord

Key = tuple[int, str]
"""Seed and order: what runs of two labels are paired by."""

RESULTS = ("results.jsonl", "results.jsonl.gz")
"""A study's runs, a line each, as ``write_results`` writes them: plain or compressed."""

KEPT = ("label", "method", "seed", "order", "matrix", "metrics", "environment")
"""What a line of ``results.jsonl`` has of ``metrics.json``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """One sub-run with its results.

    Attributes:
        folder: of the sub-run.
        label: name of method, rule and grouping.
        method: the method's name.
        seed: its seed.
        order: name of the order of tasks.
        settings: of the assistant in force, without its seed.
        fingerprints: task to the fingerprint of its content, in the order of learning.
        held_out: the same of the tasks never trained.
        metrics: every measure of ``lcia.evaluation.MEASURES``; None where it is unavailable.
        matrix: the scores.
        environment: package to version, and the platform.
        begun: when, in seconds since 1970.
        record: what a line of ``results.jsonl`` says of it.
    """

    folder: Path
    label: str
    method: str
    seed: int
    order: str
    settings: Mapping[str, Any]
    fingerprints: Mapping[str, str]
    held_out: Mapping[str, str]
    metrics: Mapping[str, float | None]
    matrix: AccuracyMatrix
    environment: Mapping[str, str]
    begun: float
    record: Mapping[str, Any]

    @property
    def key(self) -> Key:
        """Seed and order."""
        return self.seed, self.order

    @property
    def joint(self) -> bool:
        """Whether all tasks were learned at once: one order stands for all."""
        return METHODS.get(self.method).joint

    def steps(self) -> tuple[StepRecord, ...]:
        """Return the optimizer steps of all tasks; none of a run from a ``results.jsonl``."""
        journal = self.folder / "journal.jsonl"
        return tuple(step_records(read_jsonl(journal))) if journal.is_file() else ()


def find_runs(folders: Sequence[Path]) -> tuple[list[FinishedRun], list[str]]:
    """Return the finished sub-runs below the folders, in the order they were begun, and warnings.

    Raises:
        ConfigError: there are none; they learned different tasks; a label stands for different
            settings, or twice for one seed and order.
    """
    found: dict[Path, FinishedRun] = {}
    unfinished = []
    for place in itertools.chain.from_iterable(map(_places, folders)):
        if place.name in RESULTS:
            found |= {run.folder.resolve(): run for run in _read_results(place)}
        elif (place / "metrics.json").is_file():
            found[place.resolve()] = _run(place, _read(place))
        else:
            unfinished.append(place)
    if not found:
        places = ", ".join(map(str, folders))
        raise ConfigError(f"{places}: no finished run there. Run 'lcia run STREAM.yaml' first.")
    runs = sorted(found.values(), key=lambda run: run.begun)
    _check_streams(runs)
    _check_labels(runs)
    warnings = [f"{folder} is not finished and left out." for folder in unfinished]
    return runs, [*warnings, *_unpaired(runs), *_guards(runs)]


def write_results(path: Path, runs: Iterable[FinishedRun]) -> None:
    """Write what comparisons read of some runs, a line each; `find_runs` reads it back.

    Args:
        path: ends in ``.gz`` to be compressed, to a tenth.
        runs: the runs.
    """
    content = b"".join(json_bytes(run.record) + b"\n" for run in runs)
    write_bytes(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def _places(folder: Path) -> Iterator[Path]:
    """Yield ``results.jsonl`` files and folders of sub-runs, without going into stores."""
    if folder.name in RESULTS:
        yield folder
    for path, children, files in os.walk(folder):
        yield from (Path(path) / name for name in RESULTS if name in files)
        if "resolved.yaml" in files:
            children.clear()
            yield Path(path)
        children.sort()


def _read(folder: Path) -> dict[str, Any]:
    """Return the record of a sub-run's folder."""
    found = read_json(folder / "metrics.json")
    resolved = yaml.safe_load((folder / "resolved.yaml").read_text(encoding="utf-8"))
    begun = next(read_journal(folder / "journal.jsonl"))["time"]
    return {
        **{key: found[key] for key in KEPT},
        "run": folder.name,
        "begun": begun,
        "settings": resolved["settings"],
        "tasks": resolved["tasks"],
        "held_out": resolved.get("held_out", {}),
    }


def _read_results(path: Path) -> Iterator[FinishedRun]:
    for number, record in enumerate(_records(path), start=1):
        try:
            yield _run(path.parent / record["run"], record)
        except KeyError as error:
            raise ConfigError(
                f"{path}:{number}: has no {error}; expected a line of 'lcia compare --results'."
            ) from error


def _records(path: Path) -> list[Any]:
    if path.suffix != ".gz":
        return read_jsonl(path)
    try:
        lines = gzip.decompress(read_bytes(path)).splitlines()
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: expected what gzip writes: {error}.") from error
    return [parse_json(line, where=f"{path}:{n}") for n, line in enumerate(lines, start=1)]


def _run(folder: Path, record: Mapping[str, Any]) -> FinishedRun:
    config: AssistantConfig = parse_config(
        AssistantConfig, todays_names(record["settings"]), where=str(folder)
    )
    settings = config.model_dump(mode="json", exclude={"seed"})
    return FinishedRun(
        folder=folder,
        label=record["label"],
        method=record["method"]["name"],
        seed=record["seed"],
        order=record["order"],
        settings={**settings, "grouping": dataclasses.asdict(config.resolve_grouping())},
        fingerprints=record["tasks"],
        held_out=record["held_out"],
        metrics={name: record["metrics"].get(name) for name in MEASURES},
        matrix=AccuracyMatrix.from_json(record["matrix"]),
        environment=record["environment"],
        begun=record["begun"],
        record=record,
    )


def _check_streams(runs: Sequence[FinishedRun]) -> None:
    first = runs[0]
    for run in runs:
        names = {*first.fingerprints, *run.fingerprints}
        other = sorted(n for n in names if first.fingerprints.get(n) != run.fingerprints.get(n))
        if other:
            raise ConfigError(
                f"{first.folder} and {run.folder} learned different streams: {_listed(other)} "
                "differ. Compare runs of one stream."
            )


def _check_labels(runs: Sequence[FinishedRun]) -> None:
    by_label: dict[str, FinishedRun] = {}
    by_key: dict[tuple[str, Key], FinishedRun] = {}
    for run in runs:
        first = by_label.setdefault(run.label, run)
        for name in {*first.settings, *run.settings}:
            old, new = first.settings.get(name), run.settings.get(name)
            if old != new:
                raise ConfigError(
                    f"{first.folder} and {run.folder} are both labelled '{run.label}', but {name} "
                    f"is {json.dumps(old)} and {json.dumps(new)}. Give them different labels."
                )
        twin = by_key.setdefault((run.label, run.key), run)
        if twin is not run:
            raise ConfigError(
                f"{twin.folder} and {run.folder} are both '{run.label}' with seed {run.seed} and "
                f"order {run.order}. Compare one of them."
            )


def _unpaired(runs: Sequence[FinishedRun]) -> Iterator[str]:
    """Yield a line for every label that lacks a seed and order that another label has."""
    keys = sorted({run.key for run in runs})
    for label in dict.fromkeys(run.label for run in runs):
        own = [run for run in runs if run.label == label]
        missing = [
            f"seed {seed} order {order}"
            for seed, order in keys
            if not any(run.seed == seed and (run.joint or run.order == order) for run in own)
        ]
        if missing:
            yield f"{label} has no run with {_listed(missing)}: it is paired without."


def _guards(runs: Sequence[FinishedRun]) -> Iterator[str]:
    """Yield a line for what some runs have otherwise than the others."""
    if len({json.dumps(run.held_out, sort_keys=True) for run in runs}) > 1:
        yield "The held-out tasks differ: general ability cannot be compared between all runs."
    if len({(run.environment["platform"], run.environment["torch"]) for run in runs}) > 1:
        yield "Platform or torch differ between runs: times cannot be compared."


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")
