"""Keeping vLLM servers at the version that answers: ``lcia gateway --sync``.

Every adapter is served under a name that holds its version, ``g1@0002``, so that nothing is ever
exchanged under a name: a new version is loaded beside the earlier one, traffic moves once every
server that is well has it, and the earlier one is unloaded when nobody wants it any more.
"""

import asyncio
import logging
import secrets
import time
from pathlib import Path, PurePosixPath

import httpx
from safetensors.torch import load_file, save_file

from lcia.errors import LciaError
from lcia.exports.folder import check_plain
from lcia.exports.vllm import write_adapter
from lcia.files import discard, make_folders, settle, sweep
from lcia.serving.gateway.upstreams import ZEROS, Upstream, Upstreams
from lcia.serving.live import LiveStore, Snapshot

logger = logging.getLogger(__name__)

LOAD_TIMEOUT_S = 60.0
KEEP_S = 60.0
"""How long a server keeps an adapter that nobody wants: other gateways may be a little behind."""

KEEP_FILES_S = 3600.0
"""How long its files stay after that: vLLM reads an adapter again that it had no room for."""


class BehindError(LciaError, RuntimeError):
    """A server cannot be brought to a version."""


class Sync:
    """Loads and unloads adapters on the servers of a gateway.

    vLLM's kernels for the CPU give a row without an adapter that of the last slot once all slots
    are taken, which loading at run time brings about. So the base model is asked for as an adapter
    whose every value is zero, ``base@zeros``; its answers are the base model's.

    Args:
        live: the assistant; its ``released`` waits until the servers have the new version.
        upstreams: the servers.
        client: asks them.
        folder: holds the adapters as vLLM takes them; written here, read by the servers.
        seen_as: what the servers call that folder; None: the same.
        keep_s: how long a server keeps an adapter that nobody wants, in seconds.
    """

    def __init__(
        self,
        live: LiveStore,
        upstreams: Upstreams,
        client: httpx.AsyncClient,
        *,
        folder: Path,
        seen_as: str | None = None,
        keep_s: float,
    ) -> None:
        self._live, self._upstreams, self._client = live, upstreams, client
        self.folder = folder.absolute()
        self._there = PurePosixPath(seen_as or self.folder.as_posix())
        self._keep_s = keep_s
        self._locks = {upstream: asyncio.Lock() for upstream in upstreams.all}
        self._writing = asyncio.Lock()
        self._coming: Snapshot | None = None
        self._lent: dict[str, float] = {}
        self._unwanted: dict[str, float] = {}
        self._told: dict[Upstream, str] = {}
        for upstream in upstreams.all:
            upstream.folder = self._there

    def start(self) -> None:
        """Let new versions wait for the servers; called within the running event loop."""
        make_folders(self.folder)
        sweep(self.folder)
        loop = asyncio.get_running_loop()

        def released(before: Snapshot, after: Snapshot) -> None:
            asyncio.run_coroutine_threadsafe(self.bring(after), loop).result()

        self._live.released = released

    async def follow(self, interval_s: float) -> None:
        """Mend every server again and again, until cancelled; none waits for another."""

        async def mend(upstream: Upstream) -> None:
            while True:
                await self._try_to_mend(upstream)
                await asyncio.sleep(interval_s)

        await asyncio.gather(*map(mend, self._upstreams.all))

    async def bring(self, after: Snapshot) -> None:
        """Load a version on every server that is well.

        Raises:
            BehindError: one of them cannot be brought to it. It counts as not well, and no longer
                stands in the way, once it is silent several times in a row.
        """
        self._coming = after
        try:
            done = await asyncio.gather(
                *(self._mend(upstream) for upstream in self._upstreams.all if self._ours(upstream)),
                return_exceptions=True,
            )
        finally:
            self._coming = None
        for problem in done:
            if isinstance(problem, BaseException):
                raise problem

    def keep(self, adapter: str) -> None:
        """Note that an adapter of a past version is in use."""
        self._lent[adapter] = time.monotonic()

    async def lend(self, adapter: str, source: Path) -> None:
        """Have some server serve an adapter that none has; failure is told."""
        self.keep(adapter)
        for upstream in sorted(filter(self._ours, self._upstreams.all), key=lambda u: u.running):
            try:
                async with self._locks[upstream]:
                    await self._load(upstream, adapter, source)
                return
            except (LciaError, OSError) as error:
                logger.error("%s", error)

    def behind(self) -> int:
        """Return how many servers that are well lack an adapter of the version that answers."""
        wanted = self._adapters_of(self._live.current)
        return sum(
            any(not upstream.has(adapter) for adapter in wanted)
            for upstream in self._upstreams.all
            if self._ours(upstream)
        )

    def _ours(self, upstream: Upstream) -> bool:
        """Whether a server is to be looked after: one of lcia's follows the store by itself."""
        return upstream.healthy and not upstream.is_lcia

    async def _try_to_mend(self, upstream: Upstream) -> None:
        if not self._ours(upstream):
            return
        try:
            await self._mend(upstream)
        except (LciaError, OSError) as error:
            if self._told.get(upstream) != str(error):
                logger.error("%s", error)
            self._told[upstream] = str(error)
        else:
            self._told.pop(upstream, None)

    async def _mend(self, upstream: Upstream) -> None:
        """Load what a server lacks; unload what nobody has wanted for a while."""
        async with self._locks[upstream]:
            for adapter, source in self._wanted().items():
                await self._load(upstream, adapter, source)
            for adapter in self._forgotten(upstream):
                await self._unload(upstream, adapter)
        await self._clean()

    def _wanted(self) -> dict[str, Path]:
        """Return the adapters that every server is to have, each with the folder it is made of."""
        coming = self._adapters_of(self._coming) if self._coming else {}
        return self._adapters_of(self._live.current) | coming

    @staticmethod
    def _adapters_of(snapshot: Snapshot) -> dict[str, Path]:
        """Return a version's adapters and the zeros, which are made like the first of them."""
        found = dict(snapshot.adapters.values())
        return {ZEROS: next(iter(found.values())), **found} if found else {}

    def _forgotten(self, upstream: Upstream) -> list[str]:
        """Return what a server has of ours that nobody wants, and has not wanted for a while."""
        now = time.monotonic()
        self._lent = {n: since for n, since in self._lent.items() if since + self._keep_s > now}
        wanted = {*self._wanted(), *self._lent}
        for name in wanted:
            self._unwanted.pop(name, None)
        idle = [
            name
            for name in upstream.models
            if upstream.has(name) and name not in wanted and not upstream.answering[name]
        ]
        return [n for n in idle if self._unwanted.setdefault(n, now) + self._keep_s <= now]

    async def _load(self, upstream: Upstream, adapter: str, source: Path) -> None:
        if upstream.has(adapter):  # by now: several requests may have waited for it
            return
        if upstream.is_llama_cpp:
            raise BehindError(
                f"{upstream.url}: is llama.cpp's server, which takes no adapters at run time. "
                "Export the version for it and start it anew, behind a gateway without --sync."
            )
        async with self._writing:  # two servers may want the same
            await asyncio.to_thread(self._write, adapter, source)
        path = str(self._there / adapter)
        asked = {"lora_name": adapter, "lora_path": path}
        said = await self._post(upstream, "/v1/load_lora_adapter", asked)
        if upstream.has(adapter):
            logger.info("%s loaded %s", upstream.url, adapter)
            return
        if adapter in upstream.models:
            other = upstream.models[adapter].get("root")
            said = (
                f"it serves another one of that name, from {other}. An assistant needs servers of "
                "its own; unload that one there"
            )
        raise BehindError(f"{upstream.url}: did not load {adapter} from {path}: {said}.")

    async def _unload(self, upstream: Upstream, adapter: str) -> None:
        await self._post(upstream, "/v1/unload_lora_adapter", {"lora_name": adapter})
        if not upstream.has(adapter):
            logger.info("%s unloaded %s", upstream.url, adapter)

    async def _post(self, upstream: Upstream, path: str, asked: dict[str, str]) -> str:
        """Send a request and look at what the server has then; return what it said."""
        try:
            answer = await self._client.post(
                f"{upstream.url}{path}", json=asked, timeout=LOAD_TIMEOUT_S
            )
        except httpx.HTTPError as error:
            upstream.failed(f"{type(error).__name__}: {error}")
            if not upstream.healthy:
                return "it is not well"
            raise BehindError(
                f"{upstream.url}: {path}: {type(error).__name__}: {error}. This is tried again."
            ) from error
        await self._upstreams.check(upstream)
        return _said(answer)

    def _write(self, adapter: str, source: Path) -> None:
        """Write an adapter as vLLM takes it, unless it is there; it appears by one rename."""
        target = self.folder / adapter
        if target.is_dir():
            return
        check_plain(adapter, source, reader="vLLM")
        draft = self.folder / f".{adapter}.{secrets.token_hex(4)}.tmp"
        write_adapter(source, draft)
        if adapter == ZEROS:
            path = draft / "adapter_model.safetensors"
            zeros = {name: tensor.zero_() for name, tensor in load_file(path).items()}
            save_file(zeros, path, metadata={"format": "pt"})
        try:
            settle(draft, target)
        except OSError:
            discard(draft)
            if not target.is_dir():  # else another gateway was faster
                raise

    async def _clean(self) -> None:
        """Remove the files of adapters that no server has and nobody has wanted for long."""
        before = time.monotonic() - self._keep_s - KEEP_FILES_S
        served = {name for upstream in self._upstreams.all for name in upstream.models}
        for name in [n for n, since in self._unwanted.items() if since < before]:
            if name not in served:
                await asyncio.to_thread(discard, self.folder / name)
                del self._unwanted[name]


def _said(answer: httpx.Response) -> str:
    """Return what a server answered to loading or unloading, in a few words."""
    try:
        told = answer.json()
        message = told.get("error", told).get("message")
    except (ValueError, AttributeError):
        message = None
    if answer.status_code in (404, 405) and message is None:
        return (
            "it takes no adapters at run time. Start vLLM with --enable-lora and "
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment"
        )
    if answer.status_code == 404:
        return f"{message} Name the folder as the servers see it: --sync-seen-as"
    return str(message or f"it answered {answer.status_code}").rstrip(".")
