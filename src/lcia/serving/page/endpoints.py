"""The chat page at ``/``: a few files of this package, held in memory."""

import asyncio
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from lcia.serving.http.api_error import ApiError
from lcia.serving.live import LiveStore
from lcia.serving.page.overview import overview

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
