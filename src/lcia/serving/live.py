"""The version of the assistant that answers, replaced as soon as the store has a newer one."""

import asyncio
import logging
import random
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcia.errors import StoreError
from lcia.evaluation.generate import Adapters
from lcia.grouping import Router
from lcia.learner import Store
from lcia.models.lora import read_config

logger = logging.getLogger(__name__)

ASSISTANT, BASE = "assistant", "base"
"""Model names that are no groups: the routed assistant, and the model without adapters."""

PINNED = re.compile(r"(.+)@([1-9][0-9]{0,8})")
"""A name as of a version: ``assistant@7``, ``g1@7``. ``g1@0007`` is an adapter's own name."""

KEPT = 8
"""Versions that are not the current one and stay in memory, those asked for last: codebooks alone,
adapters are the engine's."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Everything a request needs of one version; whoever holds it is not disturbed by the next.

    Attributes:
        number: the version.
        router: prompt to group.
        adapters: group to key and folder of its adapter.
        names: what clients may write as ``model`` to the group that answers; of a renamed group
            its name and its id.
        pinned: adapter key, ``g1@0002``, to its group: a client that names it gets this very
            adapter or an error.
        created: when the version was made, in seconds since 1970.
    """

    number: int
    router: Router
    adapters: Adapters
    names: Mapping[str, str]
    pinned: Mapping[str, str]
    created: int

    @classmethod
    def load(cls, store: Store, *, served_here: bool, number: int | None = None) -> "Snapshot":
        """Read a version.

        Args:
            store: the assistant.
            served_here: whether its adapters are, so that they are checked.
            number: of the version; None: the current one.

        Raises:
            StoreError: it is damaged, cannot be served, or has a group of a reserved name.
        """
        version = store.current if number is None else store.version(number)
        codebook = version.codebook()
        for _, folder in version.adapters.values() if served_here else ():
            read_config(folder)
        ids = {group.id: group.id for group in codebook.groups if group.id in version.adapters}
        names = {group.name: group.id for group in codebook.groups if group.id in ids}
        if reserved := {ASSISTANT, BASE} & (names.keys() | ids.keys()):
            raise StoreError(
                f"{store.root}: a group is called '{reserved.pop()}', which names something else "
                f"when served. Rename it: lcia groups rename {store.root} GROUP NAME."
            )
        router = Router(codebook)
        router.route("A first question, so that whatever the router loads is loaded.")
        return cls(
            number=version.number,
            router=router,
            adapters=version.adapters,
            names={**names, **ids},
            pinned={version.adapters[group][0]: group for group in ids},
            created=int((version.path / "manifest.json").stat().st_mtime),
        )


class LiveStore:
    """Follows the current version of a store.

    Args:
        root: the assistant's directory.
        served_here: whether its adapters are.

    Attributes:
        current: the version in service.
        released: told the version before and the new one, before the new one answers.
        watch: called after each look at the store.

    Raises:
        StoreError: there is none, or its current version cannot be served.
    """

    def __init__(self, root: Path, *, served_here: bool = True) -> None:
        self.store = Store.open(root)
        self._served_here = served_here
        self._seen = self._stamp()
        self.current = Snapshot.load(self.store, served_here=served_here)
        self.released: Callable[[Snapshot, Snapshot], None] = lambda before, after: None
        self.watch: Callable[[], None] = lambda: None
        self._split: tuple[Snapshot, float] | None = None
        self._past: OrderedDict[int, Snapshot] = OrderedDict()
        self._loading, self._looking = threading.Lock(), threading.Lock()

    @property
    def share(self) -> float:
        """The share of the traffic that the current version answers."""
        return 1.0 if self._split is None else self._split[1]

    def split(self, earlier: Snapshot | None, *, share: float = 1.0) -> None:
        """Let an earlier version answer all but a share of the traffic, or none of it.

        Names that say a version are not concerned.
        """
        self._split = None if earlier is None else (earlier, share)

    def named(self, model: str) -> tuple[Snapshot, str]:
        """Return the version that a model's name means, and the name within it.

        ``assistant@7`` is ``assistant`` as of version 7, whichever is current; a name without a
        version means the current one, or the earlier one that shares the traffic with it. Reads
        files.

        Raises:
            StoreError: the version is gone or damaged.
        """
        current = self.current
        found = PINNED.fullmatch(model)
        if found is None or model in current.names or model in current.pinned:
            return self._drawn(current, model), model
        return self.load(int(found[2])), found[1]

    def load(self, number: int) -> Snapshot:
        """Return a version; those asked for last are kept.

        Raises:
            StoreError: the version is gone or damaged.
        """
        current = self.current
        if number == current.number:
            return current
        with self._loading:
            past = self._past.get(number) or Snapshot.load(
                self.store, served_here=self._served_here, number=number
            )
            self._past[number] = past
            self._past.move_to_end(number)
            while len(self._past) > KEPT:
                self._past.popitem(last=False)
        return past

    def _drawn(self, current: Snapshot, model: str) -> Snapshot:
        """Return which of two versions answers; a group that the earlier one lacks is the new's."""
        if self._split is None:
            return current
        earlier, share = self._split
        known = model == ASSISTANT or model in earlier.names
        return earlier if known and random.random() >= share else current

    def refresh(self) -> bool:
        """Load the current version if the store's record changed; return whether it did.

        Raises:
            StoreError: the new version cannot be served; the earlier one stays.
        """
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        before = self.current.number
        if self.store.current.number != before:
            after = Snapshot.load(self.store, served_here=self._served_here)
            self.released(self.current, after)
            self.current = after
        self._seen = stamp
        return self.current.number != before

    def look(self) -> bool:
        """Refresh, then let the watcher act; whoever waits for it sees what holds now.

        Returns:
            Whether another version is current.

        Raises:
            StoreError: as ``refresh``.
        """
        with self._looking:
            changed = self.refresh()
            if changed:
                logger.info("version %d is current now", self.current.number)
            self.watch()
        return changed

    async def follow(self, interval_s: float) -> None:
        """Look again and again, until cancelled."""
        told = ""
        while True:
            await asyncio.sleep(interval_s)
            try:
                await asyncio.to_thread(self.look)
                told = ""
            except Exception as error:  # whatever is wrong with a store, the server goes on
                if str(error) != told:
                    logger.error("version %d stays in service: %s", self.current.number, error)
                    logger.debug("what was wrong", exc_info=True)
                told = str(error)

    def _stamp(self) -> tuple[Any, ...]:
        """Return what changes when the record is replaced; one look at the file system."""
        found = (self.store.root / "assistant.json").stat()
        return found.st_ino, found.st_mtime_ns, found.st_size
