"""Reading request bodies within limits: of bytes, of values, and of all bodies together."""

import asyncio
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import Request
from pydantic_core import from_json

from lcia.serving.http.api_error import ApiError

DISCARDED_BYTES = 64 << 20
"""Read and thrown away beyond the limit: a connection reset while a client still sends would
hide the answer from it. More than this is not worth the wait."""

HELD_BYTES = 48 << 20
"""Of all bodies being read at once; a request beyond it is told to come again. Parsing holds up to
four times as much for a moment, one body after another."""

MAX_VALUES = 100_000
"""Values of a body: a list or object of so many is parsed in some ten milliseconds, while no other
answer goes on."""

MAX_FIELDS = 256
"""Fields of one object."""

MAX_MESSAGES = 4_096
"""Turns of a conversation."""


async def read_tree(request: Request, *, limit: int, timeout_s: float) -> dict[str, Any]:
    """Return the JSON object that a request holds.

    Args:
        request: its body may be compressed with gzip.
        limit: longest body in bytes, before and after it is unpacked.
        timeout_s: longest time it may take to arrive.

    Raises:
        ApiError: 415, no JSON, or compressed in another way; 413, longer than ``limit``; 408, too
            slow; 503, too many bodies at once; 400, not an object, or one of too many values.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Also keeps web pages of other sites from sending requests without asking first.
        raise ApiError(
            415, f"Content-Type is {kind!r}; expected application/json.", code="content_type"
        )
    packing = request.headers.get("content-encoding", "identity").strip().lower()
    if packing not in ("identity", "gzip"):
        raise ApiError(
            415,
            f"Content-Encoding is {packing[:50]!r}; expected gzip or none.",
            code="content_encoding",
        )
    with _Held.share(request) as held:
        try:
            body = await asyncio.wait_for(_read(request, limit, held), timeout_s)
        except asyncio.TimeoutError as error:
            raise ApiError(408, f"The body took over {timeout_s:g} s.", code="slow_body") from error
        return read_object(_unpacked(body, limit) if packing == "gzip" else body)


async def read_raw(request: Request, *, limit: int, timeout_s: float) -> bytes:
    """Return the body of a request as it came; ``limit`` and ``timeout_s`` are ``read_tree``'s.

    Raises:
        ApiError: 413, longer than ``limit``; 408, too slow; 503, too many bodies at once.
    """
    with _Held.share(request) as held:
        try:
            return await asyncio.wait_for(_read(request, limit, held), timeout_s)
        except asyncio.TimeoutError as error:
            raise ApiError(408, f"The body took over {timeout_s:g} s.", code="slow_body") from error


class _Held:
    """Bytes of the bodies that an application is reading."""

    def __init__(self) -> None:
        self.total = 0

    @classmethod
    @contextmanager
    def share(cls, request: Request) -> Iterator["_Share"]:
        """Count the bytes of one body until it is read and parsed."""
        state = request.app.state
        if not hasattr(state, "held"):
            state.held = cls()
        share = _Share(state.held)
        try:
            yield share
        finally:
            share.give_back()


class _Share:
    def __init__(self, held: _Held) -> None:
        self._held, self._own = held, 0

    def take(self, size: int) -> None:
        if self._held.total + size > HELD_BYTES:
            raise ApiError(
                503,
                "The server is reading too many large requests; try again.",
                code="overloaded",
                headers={"Retry-After": "1", "Connection": "close"},
            )
        self._held.total += size
        self._own += size

    def give_back(self) -> None:
        self._held.total -= self._own
        self._own = 0


async def _read(request: Request, limit: int, held: _Share) -> bytes:
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
            held.take(len(piece))
            pieces.append(piece)
        elif size > limit + DISCARDED_BYTES:
            break
        else:
            pieces.clear()
            held.give_back()
    if size > limit:
        raise too_long
    return b"".join(pieces)


def _unpacked(body: bytes, limit: int) -> bytes:
    unpacking = zlib.decompressobj(wbits=31)  # gzip
    try:
        content = unpacking.decompress(body, limit + 1)
    except zlib.error as error:
        raise ApiError(400, f"The body is not gzip: {error}.", code="content_encoding") from error
    if len(content) > limit:
        raise ApiError(413, f"The body unpacks to over {limit} bytes.", code="request_too_large")
    if not unpacking.eof:
        raise ApiError(400, "The body is not whole gzip.", code="content_encoding")
    return content


def read_object(body: bytes) -> dict[str, Any]:
    """Read a JSON object of a bounded number of values; the time it takes is bounded, too.

    Raises:
        ApiError: 400, it is none, or one of too many values.
    """
    if count_values(body) > MAX_VALUES:
        raise ApiError(
            400,
            f"The body has over {MAX_VALUES} values; send fewer, longer texts.",
            code="too_many_values",
        )
    try:
        tree = from_json(body, allow_inf_nan=False)
        if not isinstance(tree, dict):
            raise ValueError(f"found {_JSON_NAMES.get(type(tree), 'a number')}")
    except ValueError as error:
        said = f"The body is not a JSON object: {error}."
        raise ApiError(400, said, code="invalid_json") from error
    _check_fields(tree)
    return tree


_JSON_NAMES = {type(None): "null", list: "a list", str: "a text", bool: "true or false"}


def count_values(body: bytes) -> int:
    """Return about how many values JSON holds, without parsing it: commas and opening brackets.

    Those inside of texts do not count where they decide: a long text has many commas.
    """
    rough = _separators(body)
    if rough <= MAX_VALUES:
        return rough
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if plain.count(b'"') > 2 * MAX_VALUES:
        return plain.count(b'"') // 2
    return _separators(b"".join(plain.split(b'"')[::2]))


def _separators(body: bytes) -> int:
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def _check_fields(tree: dict[str, Any]) -> None:
    """Refuse objects of very many fields: each would be an error of its own to list."""
    messages = tree.get("messages")
    turns = messages if isinstance(messages, list) else []
    if len(turns) > MAX_MESSAGES:
        raise ApiError(
            400,
            f"'messages' has {len(turns)} turns; expected at most {MAX_MESSAGES}.",
            code="invalid_messages",
            param="messages",
        )
    for where, value in (("The body", tree), *((f"messages[{i}]", t) for i, t in enumerate(turns))):
        if isinstance(value, dict) and len(value) > MAX_FIELDS:
            raise ApiError(
                400,
                f"{where} has {len(value)} fields; expected at most {MAX_FIELDS}.",
                code="too_many_values",
            )
