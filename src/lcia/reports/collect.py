"""From stores to the plain records a report shows."""

import base64
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lcia.data.images import open_image
from lcia.data.sample import Image
from lcia.learner import Store, Version
from lcia.reports.data import GroupRecord, ReportData, RunRecord, SampleAnswer, StepRecord

SAMPLES_PER_TASK = 2
FALLBACK = "ema/fallback/"

_IMAGE_SIDE = 224
"""Longest side of an image in a page, in pixels."""


def report_of(stores: Mapping[str, Store], *, title: str) -> ReportData:
    """Return the report of one assistant, or of several that learned the same stream.

    Args:
        stores: name of the method to its assistant.
        title: heading of the page.
    """
    last = list(stores.values())[-1]
    return ReportData(
        title=title,
        runs=tuple(run_record(name, store) for name, store in stores.items()),
        settings=last.config.model_dump(mode="json"),
        versions=last.current.manifest.get("environment", {}),
    )


def run_record(method: str, store: Store) -> RunRecord:
    """Return what a report shows of one assistant's current version."""
    version = store.current
    return RunRecord(
        method=method,
        matrix=version.matrix(),
        groups=tuple(_groups(version)),
        steps=tuple(step for past in store.history() for step in step_records(past.journal())),
        routing=routing_shares(version),
        choices=tuple(_choices(store)),
        samples=tuple(_samples(version)),
    )


def routing_shares(version: Version) -> dict[str, dict[str, float]]:
    """Return task to group to the share of its held-out samples that the group answered."""
    counts: dict[str, dict[str, float]] = {}
    for prediction in version.predictions():
        row = counts.setdefault(prediction.task, {})
        group = prediction.group or "base"
        row[group] = row.get(group, 0) + 1
    return {
        task: {group: count / sum(row.values()) for group, count in row.items()}
        for task, row in counts.items()
    }


def step_records(events: Iterable[Mapping[str, Any]]) -> Iterator[StepRecord]:
    """Yield the optimizer steps among a journal's events."""
    for event in events:
        if event["event"] == "step":
            yield StepRecord(
                task=event["task"],
                step=event["step"],
                loss=event.get("loss"),
                beta_mean=event.get("ema/beta_mean"),
                beta_min=event.get("ema/beta_min"),
                beta_max=event.get("ema/beta_max"),
                fallbacks={
                    key.removeprefix(FALLBACK): share
                    for key, share in event.items()
                    if key.startswith(FALLBACK)
                },
            )


def _choices(store: Store) -> Iterator[Mapping[str, Any]]:
    """Yield what was measured, oldest first; what came before ``quality`` is not shown."""
    for past in store.history():
        choice = past.manifest.get("choice")
        if choice is not None and all("quality" in row for row in choice["table"]):
            yield choice


def _groups(version: Version) -> Iterator[GroupRecord]:
    for group in version.codebook().groups:
        yield GroupRecord(
            id=group.id,
            tasks=tuple(task.name for task in group.tasks),
            instructions=tuple(group.instructions),
            adapter_bytes=_size(version.adapters[group.id][1]),
        )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _samples(version: Version) -> Iterator[SampleAnswer]:
    shown: dict[str, int] = {}
    images = {(task.name, s.id): s.images for task in version.tasks() for s in task.test}
    for prediction in version.predictions():
        shown[prediction.task] = shown.get(prediction.task, 0) + 1
        if shown[prediction.task] <= SAMPLES_PER_TASK:
            yield SampleAnswer(
                prompt=prediction.prompt,
                answer=prediction.prediction,
                expected=prediction.answers[0],
                group=prediction.group,
                similarity=prediction.similarity,
                reason=prediction.reason,
                images=tuple(map(_inline, images.get((prediction.task, prediction.sample), ()))),
            )


def _inline(image: Image) -> str:
    """Return an image, made small, as a ``data:`` address."""
    opened = open_image(image.path)
    opened.thumbnail((_IMAGE_SIDE, _IMAGE_SIDE))
    buffer = io.BytesIO()
    opened.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
