"""Sending a request on to a server, and its answer back as it comes."""

import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence

import httpx
from fastapi.responses import StreamingResponse

from lcia.serving.gateway.upstreams import Upstream, Upstreams
from lcia.serving.http.api_error import ApiError
from lcia.serving.http.shapes import event

logger = logging.getLogger(__name__)

PASSED_ON = ("content-type", "retry-after")
"""Response headers of a server that reach the client."""

ELSEWHERE = (502, 503)
"""Answers of a server that is not well: another one is asked."""


async def forward(
    upstreams: Upstreams,
    choices: Sequence[tuple[Upstream, str]],
    requests: Sequence[httpx.Request],
    *,
    client: httpx.AsyncClient,
    headers: Mapping[str, str],
) -> StreamingResponse:
    """Send a request to the first server that takes it, and return its response as it comes.

    Another server is asked only as long as nothing came back: an answer is never begun twice.

    Args:
        upstreams: counts what is on its way.
        choices: servers that may answer, at least one, in the order in which they are asked.
        requests: the request for each of them.
        client: sends them.
        headers: added to the response.

    Raises:
        ApiError: 502, no server could be reached; 504, one was silent for too long.
    """
    problem = ""
    for (upstream, _), request in zip(choices, requests, strict=True):
        last = request is requests[-1]
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(upstreams.busy(upstream))
            try:
                answer = await client.send(request, stream=True)
            except httpx.ReadTimeout as error:
                # It is at work: asking another one would do all of it twice.
                raise ApiError(504, "The server took too long.", code="timeout") from error
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
                logger.warning("%s cannot be reached: %s", upstream.url, problem)
                upstream.models = {}  # until the next check finds it well
                continue
            stack.push_async_callback(answer.aclose)
            if answer.status_code in ELSEWHERE and not last:
                continue
            passed = {name: answer.headers[name] for name in PASSED_ON if name in answer.headers}
            return StreamingResponse(
                _body(answer, stack.pop_all()),
                status_code=answer.status_code,
                headers={**passed, **headers},
            )
    raise ApiError(
        502,
        f"No server behind this gateway could be reached ({problem}).",
        code="upstream_unreachable",
        headers={"Retry-After": "5"},
    )


async def _body(answer: httpx.Response, stack: contextlib.AsyncExitStack) -> AsyncIterator[bytes]:
    async with stack:
        try:
            async for piece in answer.aiter_bytes():
                yield piece
        except httpx.TransportError as error:
            logger.warning("%s broke off: %s", answer.url.host, error)
            if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                raise  # the client sees the connection break, too
            told = ApiError(502, "The server behind this gateway broke off.", code="upstream_broke")
            yield event(told.body())
