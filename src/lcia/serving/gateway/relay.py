"""Sending a request on to a server, and its answer back as it comes."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from fastapi.responses import Response, StreamingResponse

from lcia.serving.engine.limits import ShuttingDownError
from lcia.serving.gateway.upstreams import Upstream, Upstreams
from lcia.serving.http.api_error import ApiError, api_error
from lcia.serving.http.shapes import event

logger = logging.getLogger(__name__)

T = TypeVar("T")

PASSED_ON = ("content-type", "retry-after")
"""Response headers of a server that reach the client."""

ELSEWHERE = (404, 429, 500, 502, 503)
"""Answers that another server may not give: it is not well, is full, or changed its models."""

ERROR_EVENT = b'data: {"error"'
"""How a stream begins whose server failed before the first token; its status was 200 already."""

AGAIN = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
"""A connection that was kept open and that the server has closed meanwhile ends like this."""


@dataclass(frozen=True)
class Try:
    """A server that may answer.

    Attributes:
        upstream: the server.
        name: what it calls the model.
        fields: of the request, by which it is asked for that.
        request: for this server.
    """

    upstream: Upstream
    name: str
    fields: Mapping[str, Any]
    request: httpx.Request


class StaleModelError(Exception):
    """No server has the model any more that all of them listed."""


async def forward(
    upstreams: Upstreams,
    adapter: str | None,
    tries: Sequence[Try],
    *,
    client: httpx.AsyncClient,
    headers: Mapping[str, str],
    ending: asyncio.Event,
) -> Response:
    """Send a request to the first server that takes it, and return its response.

    Another server is asked only as long as the client got nothing: a stream that broke off before
    its first piece, and a whole answer that broke off anywhere, are asked for again. A server that
    breaks off is asked once more when all others were: its connection may have been an old one.

    Args:
        upstreams: counts what is on its way, and knows what a server has.
        adapter: group and version that is to answer; None for the base model.
        tries: servers that may answer, in the order in which they are asked.
        client: sends them.
        headers: added to the response.
        ending: set when the gateway has to end its answers.

    Raises:
        ApiError: 502, no server could be reached; 504, one was silent for too long.
        ShuttingDownError: the gateway ends.
        StaleModelError: no server has the model any more.
    """
    waiting, asked_again = deque(tries), set[Upstream]()
    refused: Response | None = None
    problem, stale = "", False
    while waiting:
        one = waiting.popleft()
        upstream = one.upstream
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(upstreams.busy(upstream, one.name))
            try:
                answer = await _unless(ending, client.send(one.request, stream=True))
                stack.push_async_callback(answer.aclose)
                if answer.status_code == 404 or not await upstreams.had(
                    upstream, adapter, name=one.name, sent=one.fields
                ):
                    stale = True
                    continue
                response, good = await _response(answer, stack, headers=headers, ending=ending)
            except httpx.ReadTimeout as error:
                # It is at work: asking another one would do all of it twice.
                raise ApiError(504, "The server took too long.", code="timeout") from error
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
                logger.warning("%s broke off: %s", upstream.url, problem)
                if isinstance(error, AGAIN) and upstream not in asked_again:
                    asked_again.add(upstream)
                    waiting.append(one)
                else:
                    upstream.failed(problem)
                continue
            if good:
                upstream.well()
                return response
            refused = response
    if refused is not None:
        return refused
    if stale:
        raise StaleModelError
    raise ApiError(
        502,
        f"No server behind this gateway could be reached ({problem}).",
        code="upstream_unreachable",
        headers={"Retry-After": "5"},
    )


async def _response(
    answer: httpx.Response,
    stack: contextlib.AsyncExitStack,
    *,
    headers: Mapping[str, str],
    ending: asyncio.Event,
) -> tuple[Response, bool]:
    """Return a stream whose first piece has come, or a whole answer, and whether it is good."""
    passed = {name: answer.headers[name] for name in PASSED_ON if name in answer.headers}
    about = {"status_code": answer.status_code, "headers": {**passed, **headers}}
    if not answer.headers.get("content-type", "").startswith("text/event-stream"):
        whole = Response(await _unless(ending, answer.aread()), **about)  # type: ignore[arg-type]
        return whole, answer.status_code not in ELSEWHERE
    pieces = answer.aiter_bytes()
    first = await _unless(ending, _next(pieces))
    if not first:
        raise httpx.RemoteProtocolError("the stream ended before it began", request=answer.request)
    if first.startswith(ERROR_EVENT):
        rest = await _unless(ending, _all(pieces))
        return Response(first + rest, **about), False  # type: ignore[arg-type]
    events = _events(first, pieces, stack.pop_all(), host=answer.url.host, ending=ending)
    return StreamingResponse(events, **about), True  # type: ignore[arg-type]


async def _events(
    first: bytes,
    pieces: AsyncIterator[bytes],
    stack: contextlib.AsyncExitStack,
    *,
    host: str,
    ending: asyncio.Event,
) -> AsyncIterator[bytes]:
    async with stack:
        try:
            piece = first
            while piece:
                yield piece
                piece = await _unless(ending, _next(pieces))
        except httpx.TransportError as error:
            logger.warning("%s broke off: %s", host, error)
            told = ApiError(502, "The server behind this gateway broke off.", code="upstream_broke")
            yield event(told.body())
        except ShuttingDownError as error:
            yield event(api_error(error).body())


async def _all(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


async def _next(pieces: AsyncIterator[bytes]) -> bytes:
    """Return the next piece; nothing at the end."""
    async for piece in pieces:
        return piece
    return b""


async def _unless(ending: asyncio.Event, work: Awaitable[T]) -> T:
    """Return what ``work`` returns.

    Raises:
        ShuttingDownError: the gateway ends first.
    """
    working = asyncio.ensure_future(work)
    over = asyncio.ensure_future(ending.wait())
    try:
        await asyncio.wait({working, over}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ShuttingDownError("The server is shutting down.")
        return working.result()
    finally:
        over.cancel()
        if not working.done():
            working.cancel()  # once: a second time would stop it from closing its connection
            await asyncio.wait({working})
