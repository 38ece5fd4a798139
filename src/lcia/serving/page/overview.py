"""What the page shows of an assistant."""

from collections.abc import Iterator
from typing import Any

from lcia.learner import Store, Version

LONGEST_EXAMPLE = 300
"""Characters of a prompt that the page offers as an example."""


def overview(store: Store) -> dict[str, Any]:
    """Return groups, versions, scores and one example a group, as JSON values."""
    current = store.current
    metrics = current.manifest.get("metrics", {})
    return {
        "name": store.root.resolve().name,
        "model": store.config.model,
        "version": current.number,
        "average_accuracy": metrics.get("average_accuracy"),
        "forgetting": metrics.get("forgetting"),
        "groups": [_group(group) for group in current.codebook().groups],
        "versions": [_version(version) for version in reversed(store.history())],
        "matrix": current.matrix().to_json(),
        "examples": list(_examples(current)),
    }


def _group(group: Any) -> dict[str, Any]:
    return {
        "id": group.id,
        "name": group.name,
        "retired": group.retired,
        "tasks": [task.name for task in group.tasks],
        "instructions": group.instructions[:3],
    }


def _version(version: Version) -> dict[str, Any]:
    manifest = version.manifest
    return {
        "number": version.number,
        "task": manifest["task"],
        "note": manifest.get("note"),
        "group": manifest.get("group"),
        "average_accuracy": manifest.get("metrics", {}).get("average_accuracy"),
    }


def _examples(version: Version) -> Iterator[dict[str, str]]:
    """Yield a held-out prompt of each group, one that was answered well if there is one."""
    best: dict[str | None, Any] = {}
    for prediction in version.predictions():
        known = best.get(prediction.group)
        if len(prediction.prompt) <= LONGEST_EXAMPLE and (
            known is None or prediction.score > known.score
        ):
            best[prediction.group] = prediction
    for prediction in best.values():
        yield {"task": prediction.task, "prompt": prediction.prompt}
