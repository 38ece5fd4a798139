"""Keys, hosts, headers and the access log: what every response passes."""

import hashlib
import hmac
import ipaddress
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders

from lcia.serving.http.api_error import ApiError

logger = logging.getLogger(__name__)

OPEN = ("/", "/page/", "/healthz", "/readyz")
"""What needs no key: the page, which holds no data, and the probes."""

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

Observe = Callable[[str, int, float], None]


class Guard:
    """ASGI middleware: refuses who may not ask, and completes every response.

    Args:
        app: what is guarded.
        api_keys: any of them is accepted; none: only this machine may ask, by a name of it, so
            that no web page reaches the server under a name of its own.
        observe: told path, status and seconds of every request.
    """

    def __init__(self, app: Any, *, api_keys: Sequence[str], observe: Observe) -> None:
        self.app = app
        self._digests = [hashlib.sha256(key.encode()).digest() for key in api_keys]
        self._observe = observe

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500
        headers = {**HEADERS, "X-Request-Id": uuid.uuid4().hex}

        async def complete(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = MutableHeaders(scope=message)
                for name, value in headers.items():
                    own.setdefault(name, value)
                own.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            self._check(scope["path"], Headers(scope=scope))
        except ApiError as error:
            await error.response()(scope, receive, complete)
        else:
            await self.app(scope, receive, complete)
        finally:
            seconds = time.perf_counter() - started
            self._observe(scope["path"], status, seconds)
            request = headers["X-Request-Id"]
            logger.info(
                "%s %r %d %.3fs %s", scope["method"], scope["path"], status, seconds, request
            )

    def _check(self, path: str, headers: Headers) -> None:
        if not self._digests:
            self._check_host(headers.get("host", ""))
        elif not (path in OPEN or path.startswith("/page/")):
            self._check_key(headers.get("authorization", ""))

    def _check_key(self, authorization: str) -> None:
        scheme, _, key = authorization.partition(" ")
        digest = hashlib.sha256(key.strip().encode()).digest()
        # Every key is compared, each in constant time: neither tells how close a guess was.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise ApiError(
                401,
                "The API key is missing or wrong; send 'Authorization: Bearer KEY'.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _check_host(self, host: str) -> None:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        name = name.strip("[]").lower()
        try:
            local = ipaddress.ip_address(name).is_loopback
        except ValueError:
            local = name == "localhost"
        if not local:
            raise ApiError(
                403,
                f"Host is {host[:100]!r}; without API keys only this machine may ask, by "
                "localhost or a loopback address. Start the server with --api-key-file.",
                code="host_not_allowed",
            )
