"""Keys, hosts, headers and the access log: what every response passes."""

import ipaddress
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders

from lcia.errors import StoreError
from lcia.serving.config import Caller, Keys, is_open, scope_of
from lcia.serving.http.api_error import ApiError
from lcia.store.audit import acting

logger = logging.getLogger(__name__)

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
        keys: who may ask for what; while none is needed, only this machine may ask, by a name of
            it, so that no web page reaches the server under a name of its own.
        observe: told path, status and seconds of every request.
    """

    def __init__(self, app: Any, *, keys: Keys, observe: Observe) -> None:
        self.app = app
        self._keys = keys
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
            caller = self._check(scope["method"], scope["path"], Headers(scope=scope))
        except ApiError as error:
            await error.response()(scope, receive, complete)
        else:
            scope.setdefault("state", {})["caller"] = caller
            with acting(f"key {caller.name}" if caller.name else "server"):
                await self.app(scope, receive, complete)
        finally:
            seconds = time.perf_counter() - started
            self._observe(scope["path"], status, seconds)
            request = headers["X-Request-Id"]
            logger.info(
                "%s %r %d %.3fs %s", scope["method"], scope["path"], status, seconds, request
            )

    def _check(self, method: str, path: str, headers: Headers) -> Caller:
        try:
            if not self._keys.needed:
                self._check_host(headers.get("host", ""))
                return Caller()
            if is_open(path):
                return Caller()
            caller = self._keys.caller(headers.get("authorization", ""))
        except StoreError as error:
            logger.error("no key can be checked: %s", error)
            raise ApiError(
                500, "The keys cannot be read; the log says why.", code="keys"
            ) from error
        if caller is None:
            raise ApiError(
                401,
                "The API key is missing or wrong; send 'Authorization: Bearer KEY'.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if not caller.may(method, path):
            needed = scope_of(method, path)
            raise ApiError(
                403,
                f"The key '{caller.name}' may {', '.join(caller.scopes)}; {method} {path[:200]} "
                + (f"needs the scope '{needed}'." if needed else "is for keys without scopes."),
                code="insufficient_scope",
            )
        return caller

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
                "localhost or a loopback address. Make a key: lcia keys add.",
                code="host_not_allowed",
            )
