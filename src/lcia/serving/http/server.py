"""Running an application under uvicorn."""

import asyncio
import logging
import math
import signal
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from lcia.errors import ConfigError
from lcia.serving.config import AccessConfig

logger = logging.getLogger(__name__)

BACKLOG = 512
CONNECTIONS = 4096
"""More are answered 503 at once: uvicorn waits for ever for a connection's first request."""


GRACE_S = 5
"""Seconds in which answers that are told of the end when the drain is over leave the server."""


class DrainingServer(uvicorn.Server):
    """A server whose answers are told when their time after SIGTERM is over.

    uvicorn would cancel them: their clients would see a broken connection.
    """

    def __init__(self, config: uvicorn.Config, *, drain_s: float, end: Callable[[], None]) -> None:
        super().__init__(config)
        self._drain_s, self._end = drain_s, end

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for running answers; when the drain is over, end them."""
        over = asyncio.get_running_loop().call_later(self._drain_s, self._end)
        try:
            await super().shutdown(sockets)
        finally:
            over.cancel()


def run(app: Any, access: AccessConfig, listening: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        app: the application; its ``state.end`` ends all answers that are being given.
        access: the settings.
        listening: what ``listen`` returned: an address that is taken is told before a model is
            loaded.
    """
    host, port = listening.getsockname()[:2]
    logger.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
    # uvicorn raises the signal that stopped it again when it is done; by then all is well.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    make_server(app, access).run(sockets=[listening])


def make_server(app: Any, access: AccessConfig) -> uvicorn.Server:
    """Return a server that drains on SIGTERM: no new connections, running answers go on."""
    config = uvicorn.Config(
        app,
        host=access.host,
        port=access.port,
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=True,
        timeout_graceful_shutdown=math.ceil(access.drain_s) + GRACE_S,
        timeout_keep_alive=30,
        limit_concurrency=CONNECTIONS,
        backlog=BACKLOG,
        ws="none",
        proxy_headers=False,
    )
    return DrainingServer(config, drain_s=access.drain_s, end=app.state.end)


def listen(access: AccessConfig) -> socket.socket:
    """Return a socket at the configured address; nobody can connect before it listens.

    Raises:
        ConfigError: the address is taken or is not this machine's.
    """
    try:
        family, *_, address = socket.getaddrinfo(
            access.host, access.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address[:2])
    except OSError as error:
        raise ConfigError(
            f"--host {access.host} --port {access.port}: cannot listen there: "
            f"{error.strerror or error}. Choose another port."
        ) from error
    return listening
