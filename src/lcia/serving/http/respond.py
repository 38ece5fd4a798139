"""An answer as an HTTP response, whole or streamed; given up when its client is gone."""

import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from lcia.errors import LciaError
from lcia.serving.engine.job import Delta
from lcia.serving.http.api_error import api_error
from lcia.serving.http.connection import CLIENT_GONE, ClientGoneError, while_connected
from lcia.serving.http.service import Prepared, Service
from lcia.serving.http.shapes import DONE, Shape, event

logger = logging.getLogger(__name__)


async def respond(
    request: Request,
    service: Service,
    prepared: Prepared,
    *,
    shape: Shape,
    stream: bool,
    usage: bool,
) -> Response:
    """Generate an answer and return the response.

    Args:
        request: whose connection is watched.
        service: generates.
        prepared: what.
        shape: how the endpoint writes answers.
        stream: whether the answer is sent as it grows.
        usage: whether a stream ends with the number of tokens.

    Raises:
        LciaError: nothing was generated; see ``Answers.generate``.
    """
    deltas = service.generate(prepared)
    headers = prepared.choice.headers()
    try:
        if not stream:
            text, last = await while_connected(request, _whole(deltas))
            body = shape.whole(text, tokens=last.tokens, finish_reason=last.finish_reason)
            return JSONResponse(body, headers=headers)
        # What fails before the first token is told by a status, not within a stream.
        first = await while_connected(request, anext(deltas))
    except ClientGoneError:
        return Response(status_code=CLIENT_GONE)
    events = _events(first, deltas, shape=shape, usage=usage)
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def _whole(deltas: AsyncGenerator[Delta, None]) -> tuple[str, Delta]:
    pieces, last = [], Delta()
    async with contextlib.aclosing(deltas):
        async for last in deltas:
            pieces.append(last.text)
    return "".join(pieces), last


async def _events(
    first: Delta, deltas: AsyncGenerator[Delta, None], *, shape: Shape, usage: bool
) -> AsyncIterator[bytes]:
    async with contextlib.aclosing(deltas):
        yield event(shape.first())
        delta = first
        try:
            while True:
                if delta.text:
                    yield event(shape.piece(delta.text))
                if delta.last:
                    break
                delta = await anext(deltas)
        except LciaError as error:  # the response has begun: only the stream can tell it
            logger.warning("a stream broke off: %s", error)
            yield event(api_error(error).body())
            return
        yield event(shape.piece("", finish_reason=delta.finish_reason))
        if usage:
            yield event(shape.last(delta.tokens))
        yield DONE
