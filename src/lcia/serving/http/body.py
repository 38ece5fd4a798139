"""Reading request bodies within limits."""

import asyncio

from fastapi import Request

from lcia.serving.http.api_error import ApiError

DISCARDED_BYTES = 64 << 20
"""Read and thrown away beyond the limit: a connection reset while a client still sends would
hide the answer from it. More than this is not worth the wait."""


async def read_body(request: Request, *, limit: int, timeout_s: float) -> bytes:
    """Return the body of a JSON request; at no time more than ``limit`` bytes are held.

    Raises:
        ApiError: 415, no JSON; 413, longer than ``limit`` bytes; 408, too slow.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Also keeps web pages of other sites from sending requests without asking first.
        raise ApiError(
            415, f"Content-Type is {kind!r}; expected application/json.", code="content_type"
        )
    try:
        return await asyncio.wait_for(_read(request, limit), timeout_s)
    except asyncio.TimeoutError as error:
        raise ApiError(408, f"The body took over {timeout_s:g} s.", code="slow_body") from error


async def _read(request: Request, limit: int) -> bytes:
    too_long = ApiError(
        413,
        f"The body is longer than {limit} bytes.",
        code="request_too_large",
        headers={"Connection": "close"},
    )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit + DISCARDED_BYTES:
        raise too_long
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size <= limit:
            pieces.append(piece)
        elif size > limit + DISCARDED_BYTES:
            break
        else:
            pieces.clear()
    if size > limit:
        raise too_long
    return b"".join(pieces)
