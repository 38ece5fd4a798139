"""Answers as an HTTP response, whole or streamed; given up when their client is gone."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from lcia.errors import LciaError
from lcia.serving.engine.job import Delta
from lcia.serving.http.api_error import api_error
from lcia.serving.http.service import Prepared, Service
from lcia.serving.http.shapes import DONE, Shape, event

logger = logging.getLogger(__name__)

Asked = Sequence[tuple[Prepared, Shape]]
"""The prompts of one request, each with how its answer is written."""


async def respond(
    request: Request, service: Service, asked: Asked, *, stream: bool, usage: bool
) -> Response:
    """Generate the answers of a request and return the response.

    Args:
        request: whose connection is watched.
        service: generates.
        asked: one prompt, or several of a completion request.
        stream: whether answers are sent as they grow; several come one after another.
        usage: whether a stream ends with the number of tokens.

    Raises:
        LciaError: nothing was generated; see ``Answers.generate``.
    """
    headers = asked[0][0].choice.headers()
    try:
        if not stream:
            body = await while_connected(request, _all(service, asked))
            return JSONResponse(body, headers=headers)
        # What fails before the first token is told by a status, not within a stream.
        deltas = service.generate(asked[0][0])
        first = await while_connected(request, anext(deltas))
    except ClientGoneError:
        return Response(status_code=CLIENT_GONE)
    events = _events(first, deltas, service, asked, usage=usage)
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def _all(service: Service, asked: Asked) -> dict[str, Any]:
    """Return the body of all answers together; they are generated side by side."""
    working = [asyncio.ensure_future(_whole(service.generate(p))) for p, _ in asked]
    try:
        answers = await asyncio.gather(*working)
    finally:
        for task in working:
            task.cancel()
    if service.keep_receipts:
        told = [(s.receipt_id, p, *a) for (p, s), a in zip(asked, answers, strict=True)]
        await service.keep_receipts(told)
    bodies = [
        shape.whole(text, tokens=last.tokens, finish_reason=last.finish_reason)
        for (_, shape), (text, last) in zip(asked, answers, strict=True)
    ]
    return {
        **bodies[0],
        "choices": [choice for body in bodies for choice in body["choices"]],
        "usage": _sum(body["usage"] for body in bodies),
    }


def _sum(usages: Any) -> dict[str, int]:
    listed = list(usages)
    return {name: sum(usage[name] for usage in listed) for name in listed[0]}


async def _whole(deltas: AsyncGenerator[Delta, None]) -> tuple[str, Delta]:
    pieces, last = [], Delta()
    async with contextlib.aclosing(deltas):
        async for last in deltas:
            pieces.append(last.text)
    return "".join(pieces), last


async def _events(
    first: Delta,
    deltas: AsyncGenerator[Delta, None],
    service: Service,
    asked: Asked,
    *,
    usage: bool,
) -> AsyncIterator[bytes]:
    used, delta = [], first
    for i, (prepared, shape) in enumerate(asked):
        if i:
            deltas = service.generate(prepared)
        async with contextlib.aclosing(deltas):
            yield event(shape.first())
            texts: list[str] = []
            try:
                delta = delta if i == 0 else await anext(deltas)
                while True:
                    texts.append(delta.text)
                    if delta.text:
                        yield event(shape.piece(delta.text))
                    if delta.last:
                        break
                    delta = await anext(deltas)
            except LciaError as error:  # the response has begun: only the stream can tell it
                logger.warning("a stream broke off: %s", error)
                yield event(api_error(error).body())
                return
            if service.keep_receipts:
                await service.keep_receipts([(shape.receipt_id, prepared, "".join(texts), delta)])
            yield event(shape.piece("", finish_reason=delta.finish_reason))
            used.append(shape.usage(delta.tokens))
    if usage:
        yield event({**asked[0][1].last(0), "usage": _sum(used)})
    yield DONE


T = TypeVar("T")

CLIENT_GONE = 499
"""nginx's status for a client that left; nobody receives it, but logs and metrics show it."""


class ClientGoneError(Exception):
    """The client closed its connection."""


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Return what ``work`` returns, but cancel it as soon as the client closes its connection.

    Raises:
        ClientGoneError: it did.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    message: Any = {}
    while message.get("type") != "http.disconnect":
        message = await request.receive()
