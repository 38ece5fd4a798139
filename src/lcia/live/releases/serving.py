"""Releases on a running server: their endpoints, and the canary that splits its traffic."""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from lcia.errors import ConfigError, StoreError
from lcia.live.api import ReleaseRequest, check_origin, parse
from lcia.live.database import DatabaseError
from lcia.live.releases.canary import (
    PROMOTED,
    RUNNING,
    WORSE,
    Answered,
    Canaries,
    lineage,
    settle,
)
from lcia.live.releases.listing import BusyError, NoReleaseError, Releases
from lcia.serving.config import AccessConfig
from lcia.serving.http.api_error import ApiError
from lcia.serving.http.body import read_tree
from lcia.serving.live import LiveStore, Snapshot

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Trial:
    """Splits the traffic of a server between a new version and the one before.

    Args:
        live: the assistant that is served.
        canaries: what is counted and decided.
    """

    def __init__(self, live: LiveStore, canaries: Canaries) -> None:
        self._live = live
        self._canaries = canaries
        live.released, live.watch = self.released, self.look
        self._start()

    def released(self, before: Snapshot, after: Snapshot) -> None:
        """Let a version that builds on the one before answer a share; any other answers all.

        Whoever went back to a version, or moved to one by hand, has decided already.
        """
        builds_on_it = before.number in set(lineage(self._live.store)) - {after.number}
        if not builds_on_it:
            self._canaries.settle(after.number, f"version {after.number} became current")
            self._live.split(None)
            return
        if self._canaries.is_worse():
            return  # what was learned on top of it goes back with it: see ``look``
        on = self._canaries.begin(before=before.number, version=after.number)
        self._live.split(self._live.load(on["before"]), share=on["share"])
        logger.info(
            "version %d answers %.0f %% of the requests until it gave %d answers",
            after.number,
            100 * on["share"],
            on["answers"],
        )

    def look(self) -> None:
        """Judge the canary that is on, and act on it; called again and again."""
        on, live = self._canaries.judge(), self._live
        if on is None:
            return
        if on["state"] == WORSE:
            if live.share != 0:
                logger.error("version %d is taken back: %s", on["version"], on["why"])
                live.split(live.load(on["before"]), share=0.0)
            settle(live.store, self._canaries, on)
        elif on["version"] == live.current.number:
            if on["state"] == PROMOTED and live.share != 1:
                logger.info("version %d answers everything: %s", on["version"], on["why"])
                live.split(None)
            elif on["state"] == RUNNING and live.share == 1:  # begun by another server
                live.split(live.load(on["before"]), share=on["share"])

    def count(self, answered: Sequence[Answered]) -> None:
        """Count answers; what cannot be counted is told in the log."""
        try:
            self._canaries.count(answered)
        except DatabaseError as error:
            logger.error("an answer is not counted: %s", error)

    def _start(self) -> None:
        """Go on with the canary that was on, or begin that of a release that nobody saw."""
        on, live = self._canaries.latest(), self._live
        if on is None:
            self._canaries.settle(live.current.number, "it answered when canaries began")
        elif on["state"] == WORSE:
            live.split(live.load(on["before"]), share=0.0)
        elif on["version"] == live.current.number:
            if on["state"] == RUNNING:
                live.split(live.load(on["before"]), share=on["share"])
        else:
            proven = on["version"] if on["state"] == PROMOTED else on["before"]
            self.released(live.load(proven), live.current)


def add_releases(app: FastAPI, access: AccessConfig, releases: Releases, live: LiveStore) -> None:
    """List, show, promote and roll back; what was decided is in force here when it is answered."""
    base = "/v1/lcia/releases"

    @app.get(base)
    async def listed() -> Response:
        found = await _on_thread(releases.listed)
        return JSONResponse({"object": "list", "data": [_told(one) for one in found]})

    @app.get(base + "/{number}")
    async def show(number: str, request: Request) -> Response:
        found = await _on_thread(lambda: releases.get(_number(number)))
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(await asyncio.to_thread(page, found))
        return JSONResponse(_told(found))

    def promote(number: int, asked: ReleaseRequest) -> Any:
        live.look()  # a version released a moment ago has no canary yet
        return releases.promote(number, reason=asked.reason, force=asked.force)

    def roll_back(number: int, asked: ReleaseRequest) -> Any:
        return releases.roll_back(number, reason=asked.reason)

    def decide(act: Callable[[int, ReleaseRequest], Any], number: int, asked: Any) -> Any:
        found = act(number, asked)
        live.look()
        return found

    def add_action(name: str, act: Callable[[int, ReleaseRequest], Any]) -> None:
        @app.post(base + "/{number}/" + name)
        async def action(number: str, request: Request) -> Response:
            check_origin(request, access)
            asked = parse(ReleaseRequest, await _tree(request, access))
            return JSONResponse(
                _told(await _on_thread(lambda: decide(act, _number(number), asked)))
            )

    add_action("promote", promote)
    add_action("rollback", roll_back)


def page(release: Mapping[str, Any]) -> str:
    """Return a release's report as a page."""
    from lcia.reports.html import templates

    return str(templates().get_template("release.html").render(release=release))


async def _tree(request: Request, access: AccessConfig) -> dict[str, Any]:
    """Return the body of a request that may have none."""
    if request.headers.get("content-length", "0") == "0":
        return {}
    return await read_tree(request, limit=access.max_body_bytes, timeout_s=access.body_timeout_s)


async def _on_thread(work: Callable[[], T]) -> T:
    try:
        return await asyncio.to_thread(work)
    except NoReleaseError as error:
        raise ApiError(404, str(error), code="not_found", param="number") from error
    except BusyError as error:
        raise ApiError(409, str(error), code="busy", headers={"Retry-After": "5"}) from error
    except ConfigError as error:
        raise ApiError(400, str(error), code="invalid_value") from error
    except StoreError as error:
        raise ApiError(409, str(error), code="store") from error


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 9):
        raise NoReleaseError(f"There is no release {text[:20]!r}; releases have numbers.")
    return int(text)


def _told(release: Mapping[str, Any]) -> dict[str, Any]:
    return {"object": "lcia.release", **json.loads(json.dumps(release))}
