"""Work that ends when its client leaves."""

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from fastapi import Request

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
