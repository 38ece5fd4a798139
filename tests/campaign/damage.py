"""Damage: killed at any call, no space, bits flipped, power lost; then on as if nothing was."""

import errno
import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from campaign.driver import FAIL, KILL, KILL_AFTER, difference, end_state, verified


def points(scenario):
    """Every call to be killed before, and the writes to be killed after."""
    return [
        *((KILL, at) for at in range(scenario.calls)),
        *((KILL_AFTER, at) for at in scenario.writes),
    ]


def crash(stores, scenario, mode, at):
    """Kill the command there, check, run it again, compare; return what is wrong, or None."""
    root, out = stores.place(scenario.before)
    argv = stores.filled(scenario.argv, root, out)
    killed = stores.driver.run(*argv, folder=root.parent, mode=mode, at=at)
    if killed.code != -9:
        return f"was not killed: exit {killed.code}"
    if (root / "assistant.json").is_file():
        if problem := verified(root):
            return f"after the kill: {problem}"
    elif scenario.before is not None:
        return "the store is gone"
    again = stores.driver.run(*argv)
    if again.code != scenario.code and not settled(scenario, again):
        return f"the same command again: exit {again.code}: {' '.join(again.lines)}"
    return verified(root) or difference(scenario, root, out)


def settled(scenario, again):
    """Whether the command says of itself that it is done already.

    A change of groups, and an export, are not repeated in silence: after they took effect the same
    command has nothing to change.
    """
    return scenario.name.startswith(("groups", "export")) and again.code == 2


ERRORS = {
    "no space": errno.ENOSPC,
    "no permission": errno.EACCES,
    "read-only": errno.EROFS,
    "too many files": errno.EMFILE,
}


def fail(stores, scenario, error, at):
    """Let that call and all after it fail; return what is wrong with what follows, or None."""
    root, out = stores.place(scenario.before)
    before = end_state(root) if scenario.before is not None else {}
    argv = stores.filled(scenario.argv, root, out)
    done = stores.driver.run(
        *argv,
        folder=root.parent,
        mode=FAIL,
        at=at,
        error=ERRORS[error],
        opens=error == "too many files",
    )
    if done.hung:
        return "hung"
    if done.code == scenario.code == 0:
        return None if difference(scenario, root, out) is None else "ended well, and is not whole"
    if done.code not in (1, 2) or len(done.lines) != 1:
        return f"exit {done.code}, {len(done.lines)} lines: {' | '.join(done.lines)[:300]}"
    if scenario.before is not None:
        if problem := verified(root):
            return f"after the failure: {problem}"
        wanted = before.keys() & scenario.after.keys()
        lost = [name for name in sorted(wanted) if not (root / name).is_file()]
        if lost:
            return f"lost {lost[0]}"
    again = stores.driver.run(*argv)
    if again.code != scenario.code and not settled(scenario, again):
        return f"once there is room: exit {again.code}: {' '.join(again.lines)}"
    return difference(scenario, root, out)


def files(root):
    """Every file that a version consists of."""
    return [path for path in sorted(root.rglob("*")) if path.is_file() and path.name != ".lock"]


def places(path, rng, at_most):
    """Places in a file to flip a bit at: all, or the first, the last and some between."""
    size = path.stat().st_size
    if size <= at_most:
        return list(range(size))
    return sorted({0, size - 1, *(rng.randrange(size) for _ in range(at_most - 2))})


def flip(root, path, place, bit):
    """Flip one bit, verify, put it back; return what is wrong, or None."""
    from lcia.store.verify import verify

    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[place] ^= 1 << bit
    path.write_bytes(bytes(damaged))
    try:
        findings = verify(root)
    finally:
        path.write_bytes(content)
    if not findings:
        return f"bit {bit}: not found"
    return (
        None if any(path.name in line for line in findings) else f"not named: {findings[0][:200]}"
    )


def flips(root, *, per_file, seed=0):
    """Yield every flip to try."""
    rng = random.Random(seed)
    for path in files(root):
        for place in places(path, rng, per_file):
            yield path, place, rng.randrange(8)


CONTINUED = 16
"""After every so many-th loss the command is run again, which takes seconds."""

LOSSES = ("data", "names", "both")
"""What is lost of what was not synced: the content of files, the names in folders, or both."""


@dataclass
class Disk:
    """A folder as a disk would hold it: what was synced, and what may be lost.

    ``names`` maps paths to contents as programs see them; ``kept`` is what a loss of power leaves
    of names, ``synced`` of contents.
    """

    names: dict[str, bytearray | None] = field(default_factory=dict)
    kept: dict[str, bytearray | None] = field(default_factory=dict)
    synced: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Path) -> "Disk":
        """A disk on which a folder's content has long been."""
        disk = cls()
        for path in sorted(root.rglob("*")):
            content = bytearray(path.read_bytes()) if path.is_file() else None
            disk.names[str(path)] = disk.kept[str(path)] = content
            if content is not None:
                disk.synced[id(content)] = bytes(content)
        return disk

    def apply(self, operation):
        """Do what a call did."""
        kind, path = operation.kind, operation.path
        if kind == "mkdir":
            self.names[path] = None
        elif kind in ("create", "truncate"):
            if path not in self.names or kind == "create":
                self.names[path] = bytearray()
            else:
                self.names[path].clear()
        elif kind == "write":
            content = self.names.setdefault(path, bytearray())
            at = len(content) if operation.offset < 0 else operation.offset
            content[at : at + len(operation.data)] = operation.data
        elif kind == "resize":
            content = self.names.setdefault(path, bytearray())
            content[:] = content[: operation.offset].ljust(operation.offset, b"\0")
        elif kind in ("unlink", "rmdir"):
            self.names.pop(path, None)
        elif kind == "rename":
            self._rename(path, operation.to)
        elif kind == "fsync":
            self._sync(path)

    def _rename(self, path, to):
        moved = {name: c for name, c in self.names.items() if _in(name, path)}
        for name in [n for n in self.names if _in(n, to)] + list(moved):
            self.names.pop(name, None)
        for name, content in moved.items():
            self.names[to + name[len(path) :]] = content

    def _sync(self, path):
        content = self.names.get(path)
        if content is not None:
            self.synced[id(content)] = bytes(content)
            self._keep(path)  # ext4 and others make a new file's own name durable with it
            return
        for name in [n for n in self.kept if n.startswith(f"{path}/")]:
            child = f"{path}/{name[len(path) + 1 :].partition('/')[0]}"
            if child not in self.names:
                del self.kept[name]
        for name in [n for n in self.names if os.path.dirname(n) == path]:
            self._keep(name)

    def _keep(self, path):
        """Make a name durable, with the folders above and, for a folder, what is durable in it."""
        if self.names.get(path) is None and self.kept.get(path, 0) is not None:
            for name, content in self.names.items():
                if _in(name, path):
                    self.kept[name] = content
        self.kept[path] = self.names.get(path)

    def after_loss(self, loss):
        """Return path to content of what a loss of power leaves; None for folders."""
        names = self.names if loss == "data" else self.kept
        return {
            path: None
            if content is None
            else bytes(content)
            if loss == "names"
            else self.synced.get(id(content), b"")
            for path, content in names.items()
        }


def _in(name, folder):
    return name == folder or name.startswith(folder + "/")


def lay(files, place: Path):
    """Write a disk's content into an empty folder."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for path, content in sorted(files.items()):
        target = Path(path)
        if content is None:
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def lose(stores, scenario, operations, at, loss):
    """Lose power before call ``at``; return what is wrong with what is left, or None.

    The version that was current before, or a whole newer one, has to open and verify; after the
    command ended, its own; and the same command has to come to the undisturbed end.
    """
    root, out = stores.place(scenario.before)
    disk = Disk.of(root.parent)
    for operation in operations[:at]:
        disk.apply(operation)
    lay(disk.after_loss(loss), root.parent)
    if not (root / "assistant.json").is_file():
        return None if scenario.before is None and at < len(operations) else "the store is gone"
    if problem := verified(root):
        return problem
    if at == len(operations):
        left = difference(scenario, root, out)
        return left and f"the command had ended: {left}"
    if at % CONTINUED:
        return None
    again = stores.driver.run(*stores.filled(scenario.argv, root, out))
    if again.code != scenario.code and not settled(scenario, again):
        return f"the same command again: exit {again.code}: {' '.join(again.lines)}"
    return verified(root) or difference(scenario, root, out)
