"""The servers behind a gateway: which are well, which models they have, which is least busy."""

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from lcia.errors import ConfigError
from lcia.serving.live import BASE

logger = logging.getLogger(__name__)

CHECK_TIMEOUT_S = 5.0


@dataclass(eq=False)
class Upstream:
    """One OpenAI-compatible server.

    Attributes:
        url: without ``/v1``.
        models: what it served when it was last asked, name to record; empty while it is not well.
        running: requests on their way through this gateway.
    """

    url: str
    models: Mapping[str, Any] = field(default_factory=dict)
    running: int = 0

    @property
    def healthy(self) -> bool:
        """Whether it answered when it was last asked."""
        return bool(self.models)

    def name_of(self, group: str | None, *, base_model: str | None) -> str | None:
        """Return what it calls a group, or the base model; None if it does not serve it.

        The base model is called ``base_model``, else ``base``, else it is the first one that is
        no adapter: vLLM lists an adapter's base model as its ``parent``.
        """
        if group is None and base_model is None and BASE not in self.models:
            return next(
                (name for name, record in self.models.items() if not record.get("parent")), None
            )
        name = group or base_model or BASE
        return name if name in self.models else None


class Upstreams:
    """Several servers with the same models.

    Args:
        urls: of the servers.
        client: asks them.
        base_model: what they call the model without adapters; None finds it.
    """

    def __init__(
        self, urls: Sequence[str], client: httpx.AsyncClient, *, base_model: str | None = None
    ) -> None:
        self.all = [Upstream(url.rstrip("/").removesuffix("/v1")) for url in urls]
        self.base_model = base_model
        self._client = client
        self._next = 0

    def serving(self, group: str | None) -> list[tuple[Upstream, str]]:
        """Return the servers that have a group, the least busy first, and its name there."""
        self._next += 1  # of equally busy ones, each is first in turn
        turn = self._next % len(self.all)
        found = [
            (upstream, name)
            for upstream in (*self.all[turn:], *self.all[:turn])
            if (name := upstream.name_of(group, base_model=self.base_model)) is not None
        ]
        return sorted(found, key=lambda pair: pair[0].running)

    @contextlib.contextmanager
    def busy(self, upstream: Upstream) -> Iterator[None]:
        """Count a request while it is on its way."""
        upstream.running += 1
        try:
            yield
        finally:
            upstream.running -= 1

    async def follow(self, interval_s: float) -> None:
        """Ask every server again and again, until cancelled."""
        while True:
            await self.check()
            await asyncio.sleep(interval_s)

    async def check(self) -> None:
        """Ask every server which models it has."""
        await asyncio.gather(*map(self._check, self.all))

    async def _check(self, upstream: Upstream) -> None:
        was = upstream.healthy
        problem = "it lists no models"
        try:
            answer = await self._client.get(f"{upstream.url}/v1/models", timeout=CHECK_TIMEOUT_S)
            answer.raise_for_status()
            records = answer.json()["data"]
            upstream.models = {str(record["id"]): record for record in records}
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            upstream.models = {}
            problem = f"{type(error).__name__}: {error}"
        if upstream.healthy != was:
            if was:
                logger.warning("%s is not well: %s", upstream.url, problem)
            else:
                logger.info("%s serves %s", upstream.url, ", ".join(upstream.models))


def check_url(url: str) -> str:
    """Return the address of a server.

    Raises:
        ConfigError: it is none.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"--upstream {url}: {error}. Expected http://HOST:PORT.") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"--upstream {url}: expected http://HOST:PORT or https://HOST.")
    return url
