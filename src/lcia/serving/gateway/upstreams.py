"""The servers behind a gateway: which are well, which models they have, which is least busy."""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import httpx

from lcia.errors import ConfigError
from lcia.serving.live import BASE, PINNED

logger = logging.getLogger(__name__)

CHECK_TIMEOUT_S = 30.0
"""A server that is busy lists its models late; that alone makes it no worse."""

LLAMA_CPP = "llamacpp"
"""Who owns the models of llama.cpp's server, in its own words."""

ZEROS = f"{BASE}@zeros"
"""An adapter that changes nothing, by which a server that is kept in sync is asked for the base."""

FAILURES = 3
"""Checks or connections in a row that have to fail before a server counts as not well."""


@dataclass(eq=False)
class Upstream:
    """One OpenAI-compatible server.

    Attributes:
        url: without ``/v1``.
        models: what it served when it last said so, name to record.
        failures: checks and connections in a row that failed.
        answering: model to requests for it that are on their way through this gateway.
        folder: where a server that is kept in sync reads its adapters; None: it is not.
    """

    url: str
    models: Mapping[str, Any] = field(default_factory=dict)
    failures: int = 0
    answering: Counter[str] = field(default_factory=Counter)
    folder: PurePosixPath | None = None

    @property
    def running(self) -> int:
        """Requests on their way through this gateway."""
        return self.answering.total()

    @property
    def healthy(self) -> bool:
        """Whether it is worth asking: it has models, and was not silent several times in a row."""
        return bool(self.models) and self.failures < FAILURES

    @property
    def described(self) -> str:
        """Its models, and where each was read."""
        shown = [f"{name} ({record.get('root')})" for name, record in self.models.items()]
        return ", ".join(shown) or "no models"

    def has(self, adapter: str) -> bool:
        """Whether a server that is kept in sync has an adapter, read where ours are."""
        if self.folder is None or adapter not in self.models:
            return False
        return bool(self.models[adapter].get("root") == str(self.folder / adapter))

    def name_of(self, adapter: str | None, *, base_model: str | None) -> str | None:
        """Return what it calls an adapter, or the base model; None if it does not serve it.

        A name alone does not say which version is behind it. So the adapter is the model called
        ``g1@0002``, or one whose ``root``, where vLLM read it, ends in that. Where the gateway
        keeps vLLM in sync, it is the one that the gateway loaded.

        Args:
            adapter: group and version, ``g1@0002``; None for the base model, which is called
                ``base_model``, else ``base``, else it is the first one that is no adapter: vLLM
                lists an adapter's base model as its ``parent``.
            base_model: see there.
        """
        if self.has(adapter or ZEROS):
            return adapter or ZEROS
        if adapter is None:
            if base_model is None and BASE not in self.models:
                plain = (name for name, record in self.models.items() if not record.get("parent"))
                return next(plain, None)
            name = base_model or BASE
            return name if name in self.models else None
        if self.folder is not None and not self.is_lcia:
            return None
        if adapter in self.models:
            return adapter
        for name, record in self.models.items():
            if PurePosixPath(str(record.get("root"))).name == adapter:
                # lcia's servers know the pinned name as well, and refuse it after a change.
                return adapter if self.is_lcia else name
        return None

    @property
    def is_llama_cpp(self) -> bool:
        """Whether it is llama.cpp's server, which has adapters by number and no names for them."""
        return any(record.get("owned_by") == LLAMA_CPP for record in self.models.values())

    def addressed(self, name: str) -> dict[str, Any]:
        """Return the fields of a request by which it answers as one of its models."""
        if not self.is_llama_cpp:
            return {"model": name}
        numbers = [r["number"] for r in self.models.values() if "number" in r]
        own = self.models[name].get("number")
        return {"model": name, "lora": [{"id": n, "scale": float(n == own)} for n in numbers]}

    @property
    def is_lcia(self) -> bool:
        """Whether it is ``lcia serve``, which follows the store by itself."""
        return any(record.get("owned_by") == "lcia" for record in self.models.values())

    def well(self) -> None:
        """Note that it answered."""
        if self.failures >= FAILURES:
            logger.info("%s is well again", self.url)
        self.failures = 0

    def failed(self, problem: str) -> None:
        """Note that it did not answer."""
        self.failures += 1
        if self.failures == FAILURES:
            logger.warning("%s is not well: %s", self.url, problem)


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

    def serving(self, adapter: str | None) -> list[tuple[Upstream, str]]:
        """Return the healthy servers of an adapter, the least busy first, and its name there.

        One that just failed comes last.
        """
        self._next += 1  # of equally busy ones, each is first in turn
        turn = self._next % len(self.all)
        found = [
            (upstream, name)
            for upstream in (*self.all[turn:], *self.all[:turn])
            if upstream.healthy
            and (name := upstream.name_of(adapter, base_model=self.base_model)) is not None
        ]
        return sorted(found, key=lambda pair: (pair[0].failures, pair[0].running))

    def with_past(self, name: str) -> list[tuple[Upstream, str]]:
        """Return the healthy servers of lcia's, which have past versions, the least busy first.

        Args:
            name: of a group as of a version, ``g1@7``.
        """
        found = [upstream for upstream in self.all if upstream.healthy and upstream.is_lcia]
        found.sort(key=lambda upstream: (upstream.failures, upstream.running))
        return [(upstream, name) for upstream in found]

    @contextlib.contextmanager
    def busy(self, upstream: Upstream, name: str) -> Iterator[None]:
        """Count a request for a model while it is on its way."""
        upstream.answering[name] += 1
        try:
            yield
        finally:
            upstream.answering[name] -= 1

    async def follow(self, interval_s: float) -> None:
        """Ask every server again and again, until cancelled; none waits for another."""

        async def ask(upstream: Upstream) -> None:
            while True:
                await asyncio.sleep(interval_s)
                await self.check(upstream)

        await asyncio.gather(*map(ask, self.all))

    async def had(
        self, upstream: Upstream, adapter: str | None, *, name: str, sent: Mapping[str, Any]
    ) -> bool:
        """Whether a server that answers now under a name does so with this very adapter.

        Behind a name like ``g1``, or one of llama.cpp's numbers, adapters may have been exchanged
        since the server was last looked at, or it may have started anew with others: only a look
        after it took the request tells. A name that holds the version is enough by itself.

        Args:
            upstream: the server.
            adapter: group and version that is to answer; None for the base model.
            name: what it calls the adapter.
            sent: the fields by which it was asked for; see ``Upstream.addressed``.

        Raises:
            httpx.ReadError: it cannot be looked at.
        """
        told = adapter is None or name == adapter or PINNED.fullmatch(name)
        if told and not upstream.is_llama_cpp:
            return True
        if not await self.check(upstream):
            raise httpx.ReadError("it does not say any more which models it has")
        found = upstream.name_of(adapter, base_model=self.base_model)
        return found == name and upstream.addressed(name) == sent

    async def check(self, upstream: Upstream) -> bool:
        """Ask a server which models it has; return whether it told."""
        before = upstream.described
        try:
            listed = (await self._ask(upstream, "/v1/models"))["data"]
            models = {str(record["id"]): record for record in listed}
            if any(record.get("owned_by") == LLAMA_CPP for record in listed):
                models |= _numbered(
                    await self._ask(upstream, "/lora-adapters"), of=next(iter(models))
                )
            upstream.models = models
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            upstream.failed(f"{type(error).__name__}: {error}")
            return False
        upstream.well()
        if upstream.described != before:
            logger.info("%s serves %s", upstream.url, upstream.described)
        return True

    async def _ask(self, upstream: Upstream, path: str) -> Any:
        answer = await self._client.get(f"{upstream.url}{path}", timeout=CHECK_TIMEOUT_S)
        answer.raise_for_status()
        return answer.json()


def _numbered(adapters: Sequence[Mapping[str, Any]], *, of: str) -> dict[str, Mapping[str, Any]]:
    """Return the adapters of llama.cpp's server as models, each called like its file."""
    return {
        PurePosixPath(one["path"]).stem: {"root": one["path"], "number": one["id"], "parent": of}
        for one in adapters
    }


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
