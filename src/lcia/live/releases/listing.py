"""Releases: an assistant's versions and refused candidates, shown, promoted, rolled back.

There is no second registry: what is told is read from the store, and the canary from the database.
"""

from collections.abc import Mapping
from typing import Any

from filelock import Timeout

from lcia.errors import ConfigError, StoreError
from lcia.learner import Store
from lcia.live.releases.canary import ENDED, PROMOTED, ROLLED_BACK, RUNNING, Canaries
from lcia.store.transaction import Run, accept, refused
from lcia.store.version import Version

Release = dict[str, Any]


class NoReleaseError(StoreError):
    """There is no version and no candidate of that number."""


class BusyError(StoreError):
    """Another process is changing the assistant."""


class Releases:
    """The releases of one assistant.

    Args:
        store: the assistant.
        canaries: of its server; None where there never was one.
    """

    def __init__(self, store: Store, canaries: Canaries | None = None) -> None:
        self._store = store
        self._canaries = canaries

    def listed(self) -> list[Release]:
        """Return versions and refused candidates by number, the newest first."""
        store = self._store
        found = [self._of_version(store.past(number)) for number in store.numbers() if number]
        found += [_of_refused(run, report) for run, report in refused(store).values()]
        return sorted(found, key=lambda one: -int(one["version"]))

    def get(self, number: int) -> Release:
        """Return a release with every check of the gate, its scores, and its canary.

        Raises:
            NoReleaseError: there is none of that number.
        """
        kept = refused(self._store).get(number)
        if kept is not None:
            run, report = kept
            return {**_of_refused(run, report), **_details(report), "canary": None}
        if number not in self._store.numbers() or number == 0:
            raise NoReleaseError(
                f"{self._store.root}: has no release {number}. There are: "
                f"{', '.join(str(one['version']) for one in self.listed()) or 'none'}."
            )
        version = self._store.past(number)
        report = version.gate() or {"checks": [], "before": {}, "after": _scores(version)}
        canary = self._canaries.of(number) if self._canaries else None
        return {**self._of_version(version), **_details(report), "canary": canary}

    def promote(self, number: int, *, reason: str | None = None, force: bool = False) -> Release:
        """Make a release answer everything: a version, one under trial, or a refused candidate.

        Args:
            number: of the release.
            reason: why; a refused candidate needs one, which its version keeps.
            force: whether a candidate that the gate refused is taken all the same.

        Raises:
            NoReleaseError: there is none of that number.
            ConfigError: a refused candidate without ``force`` or reason.
            BusyError: another process is changing the assistant.
            StoreError: the candidate builds on another version than the current one.
        """
        store = self._store
        said = reason or "somebody promoted it"
        if (kept := refused(store).get(number)) is not None:
            if not force or not (reason or "").strip():
                raise ConfigError(
                    f"release {number} was refused: {kept[1]['why']} To take it all the same, "
                    "force it and say the reason: --force --reason TEXT."
                )
            _unless_busy(lambda: accept(store, number, reason=reason))
            return self.get(number)
        self.get(number)
        if number == store.current_number:
            on = self._canaries.end(PROMOTED, said) if self._canaries else None
            if on is None:
                raise ConfigError(f"release {number} answers everything already.")
            return self.get(number)
        _unless_busy(lambda: store.roll_back(number))
        if self._canaries:
            self._canaries.end(ENDED, f"version {number} was promoted: {said}")
        return self.get(number)

    def roll_back(self, number: int, *, reason: str | None = None) -> Release:
        """Go back to a version; nothing is deleted.

        Raises:
            NoReleaseError: there is none of that number.
            ConfigError: it is the current one.
            BusyError: another process is changing the assistant.
        """
        if number == self._store.current_number:
            raise ConfigError(f"release {number} is the current one; name an earlier one.")
        if number:
            self.get(number)
        _unless_busy(lambda: self._store.roll_back(number))
        if self._canaries:
            told = f": {reason}" if reason else ""
            self._canaries.end(ROLLED_BACK, f"somebody went back to version {number}{told}")
        return self.get(number) if number else {"version": 0, "state": "current"}

    def _of_version(self, version: Version) -> Release:
        number, manifest = version.number, version.manifest
        report = version.gate()
        state = "pruned" if number in self._store.pruned else "earlier"
        if number == self._store.current_number:
            on = self._canaries.latest() if self._canaries else None
            trial = on is not None and (on["version"], on["state"]) == (number, RUNNING)
            state = "canary" if trial else "current"
        return {
            "version": number,
            "state": state,
            "task": manifest["task"],
            "note": manifest.get("note"),
            "group": manifest.get("group"),
            "parent": manifest["parent"],
            "created_at": int((version.path / "manifest.json").stat().st_mtime),
            "average_accuracy": manifest.get("metrics", {}).get("average_accuracy"),
            "passed": None if report is None else report["passed"],
            "reason": manifest.get("released", {}).get("reason"),
            "why": manifest.get("released", {}).get("refused"),
        }


def _of_refused(run: Run, report: Mapping[str, Any]) -> Release:
    return {
        "version": run.number,
        "state": "refused",
        "task": run.task,
        "note": None,
        "group": None,
        "parent": run.parent,
        "created_at": int((run.folder / "report.json").stat().st_mtime),
        "average_accuracy": None,
        "passed": False,
        "reason": None,
        "why": report["why"],
    }


def _details(report: Mapping[str, Any]) -> Release:
    """Return the checks and the scores; candidates of an earlier lcia have scores alone."""
    return {
        "checks": report.get("checks", []),
        "before": report.get("before", {}),
        "after": report.get("after", {}),
    }


def _scores(version: Version) -> dict[str, float | None]:
    matrix = version.matrix()
    return dict(matrix.row(matrix.learned))


def _unless_busy(act: Any) -> None:
    try:
        act()
    except StoreError as error:
        if isinstance(error.__cause__, Timeout):
            raise BusyError(str(error)) from error
        raise
