"""The chat page at ``/`` and what it shows: a few files of this package, held in memory."""

import asyncio
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from lcia.learner import Store, Version
from lcia.serving.http.api_error import ApiError
from lcia.serving.live import LiveStore

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
        "groups": [group.summary(most=3) for group in current.codebook().groups],
        "versions": [_version(version) for version in reversed(store.history())],
        "matrix": current.matrix().to_json(),
        "examples": list(_examples(current)),
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


TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


def add_page(app: FastAPI, live: LiveStore, *, feedback: bool) -> None:
    """Serve the page and what it shows of the store; with ``feedback``, people say what is wrong.

    The files are read once: no path of a request ever reaches the file system.
    """
    folder = files("lcia.serving") / "page"
    style = files("lcia.reports") / "templates" / "report.css"  # of a release's report
    contents = {
        file.name: Response(
            file.read_bytes(),
            media_type=TYPES[file.name.rpartition(".")[2]],
            headers={"Cache-Control": "no-cache"},
        )
        for file in (*folder.iterdir(), style)
        if file.name.rpartition(".")[2] in TYPES
    }
    shown: dict[int, dict[str, Any]] = {}

    @app.api_route("/", methods=["GET", "HEAD"])
    async def index() -> Response:
        return contents["index.html"]

    @app.get("/page/{name}")
    async def part(name: str) -> Response:
        if name not in contents:
            raise ApiError(404, "The page has no such part.", code="not_found")
        return contents[name]

    @app.get("/v1/store")
    async def store() -> Response:
        number = live.current.number
        if number not in shown:
            shown.clear()
            shown[number] = await asyncio.to_thread(overview, live.store)
        return JSONResponse({**shown[number], "takes_feedback": feedback})
