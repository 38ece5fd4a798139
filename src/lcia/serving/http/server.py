"""Running an application under uvicorn."""

import logging
import signal
import socket
from typing import Any

import uvicorn

from lcia.errors import ConfigError
from lcia.serving.config import AccessConfig

logger = logging.getLogger(__name__)

CONNECTIONS = 4096
"""More are answered 503 at once: uvicorn waits for ever for a connection's first request."""


def run(app: Any, access: AccessConfig) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConfigError: the address cannot be listened at.
    """
    listening = listen(access)
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
        timeout_graceful_shutdown=int(access.drain_s),
        timeout_keep_alive=30,
        limit_concurrency=CONNECTIONS,
        ws="none",
        proxy_headers=False,
    )
    return uvicorn.Server(config)


def listen(access: AccessConfig) -> socket.socket:
    """Return a socket that listens at the configured address.

    Raises:
        ConfigError: the address is taken or is not this machine's.
    """
    try:
        family, *_, address = socket.getaddrinfo(
            access.host, access.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.create_server(address[:2], family=family, backlog=512)
    except OSError as error:
        raise ConfigError(
            f"--host {access.host} --port {access.port}: cannot listen there: "
            f"{error.strerror or error}. Choose another port."
        ) from error
    return listening
