"""Small stores and the commands that change them."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from campaign.driver import COUNT, KILL, Driver, end_state

SETTINGS = (
    *("--set", "training.max_steps=4", "--set", "training.save_steps=2"),
    *("--set", "training.learning_rate=0.01", "--set", "dtype=float32"),
    *("--set", "adapter.r=2", "--set", "adapter.target_modules=[q_proj,v_proj]"),
)
STRICT = (
    *("--set", "training.max_steps=30", "--set", "training.save_steps=15"),
    *("--set", "training.learning_rate=0.03", "--set", "adapter.r=8"),
    *("--set", "adapter.target_modules=[o_proj,down_proj]"),
    *("--set", "method=sequential", "--set", "gate.max_drop=0"),
)
"""A gate that a task which overwrites another does not pass; 30 steps teach one letter."""

TASKS = {
    "colours": ("Say the letter of the colour.", {"red": "r", "green": "g"}),
    "numbers": ("Write this number as a digit.", {"one": "1", "two": "2"}),
    "shades": ("Say the letter of the colour.", {"blue": "b", "white": "w"}),
    "warm": ("Say how the colour feels.", {"red": "w", "orange": "w"}),
    "cold": ("Say how the colour feels.", {"blue": "c", "white": "c"}),
}


def write_task(folder: Path, name: str) -> Path:
    """Write the data of a task: 12 samples with a sign that some readers take for a line end."""
    instruction, answers = TASKS[name]
    lines = []
    for i in range(12):
        word = list(answers)[i % len(answers)]
        prompt = f"{instruction}\n\n{word}\u2028{i}"
        lines.append(json.dumps({"prompt": prompt, "completion": answers[word]}))
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A command on a store, and what comes of it undisturbed.

    Attributes:
        name: of the scenario.
        before: the store it starts from; None: there is none.
        argv: the command; ``STORE`` and ``OUT`` stand for the store and a folder beside it.
        after: the undisturbed end state.
        out: the undisturbed content of ``OUT``.
        calls: how many calls it makes.
        writes: the numbers of those that write and that another file's call follows.
        code: its exit code.
    """

    name: str
    before: Path | None
    argv: tuple[str, ...]
    after: dict
    out: dict
    calls: int
    writes: tuple[int, ...]
    code: int


class Stores:
    """Makes scenarios; everything lies in the driver's scratch folder."""

    def __init__(self, driver: Driver, model: Path):
        self.driver, self.model = driver, model
        self.data = driver.scratch / "data"
        self.data.mkdir()
        for name in TASKS:
            write_task(self.data, name)
        self._bases: dict[str, Path] = {}
        self._scenarios: dict[str, Scenario] = {}

    def learn(self, name: str) -> tuple[str, ...]:
        """The command that learns a task."""
        data = self.data / f"{name}.jsonl"
        return ("learn", "STORE", str(data), "--name", name)

    def create(self, name: str = "colours", *more: str) -> tuple[str, ...]:
        """The command that makes a store and learns its first task."""
        return (*self.learn(name), "--model", str(self.model), *SETTINGS, *more)

    def base(self, name: str) -> Path:
        """A store: of one task, of two or three, interrupted, and others; see the table."""
        if name not in self._bases:
            root = self.driver.scratch / f"base-{name}"
            earlier, *commands = {
                "one": (None, self.create()),
                "two": ("one", self.learn("numbers")),
                "three": ("two", self.learn("shades")),
                "interrupted": ("one", self.learn("shades")),
                "strict": (None, self.create("warm", *STRICT)),
                "refused": ("strict", self.learn("cold")),
                "branched": (
                    "three",
                    ("rollback", "STORE", "2"),
                    ("groups", "rename", "STORE", "g1", "paint"),
                    ("rollback", "STORE", "3"),
                    ("groups", "retire", "STORE", "g2"),
                ),
            }[name]
            if earlier:
                shutil.copytree(self.base(earlier), root)
            for argv in commands:
                if name == "interrupted":
                    self._interrupt(root, argv)
                    continue
                done = self.driver.run(*self.filled(argv, root))
                assert done.code == (name == "refused"), done.err
            self._bases[name] = root
        return self._bases[name]

    def _interrupt(self, root: Path, argv: tuple[str, ...]) -> None:
        """Kill a command when its first checkpoint is complete."""
        log = self.driver.scratch / "interrupted.log"
        kept = root.with_name("uninterrupted")
        shutil.copytree(root, kept)
        done = self.driver.run(*self.filled(argv, kept), folder=kept, mode=COUNT, log=log)
        assert done.code == 0, done.err
        names = [call.to for call in read_log(log)]
        at = 1 + next(i for i, name in enumerate(names) if name.endswith("/complete.json"))
        shutil.rmtree(kept)
        done = self.driver.run(*self.filled(argv, root), folder=root, mode=KILL, at=at)
        assert done.code == -9, done.err
        assert list(root.glob("runs/*/checkpoints/*/complete.json"))

    def scenario(self, name: str) -> Scenario:
        """Run a command undisturbed, once, and say what it led to."""
        if name not in self._scenarios:
            self._scenarios[name] = self._undisturbed(name, *self.scenarios()[name]())
        return self._scenarios[name]

    def log(self, scenario: str) -> Path:
        """Where the calls of an undisturbed command are; see `read_log`."""
        return self.driver.scratch / f"{scenario}.log"

    def copy(self, base: str) -> Path:
        """A copy of a finished store that is made once."""
        root = self.driver.scratch / f"copy-{base}"
        if not root.exists():
            shutil.copytree(self.base(base), root)
        return root

    def fresh(self, name: str) -> Path:
        """An empty folder."""
        folder = self.driver.scratch / name
        folder.mkdir()
        return folder

    def _undisturbed(self, name: str, before: Path | None, argv: tuple[str, ...]) -> Scenario:
        root, out = self.place(before)
        log, filled = self.log(name), self.filled(argv, root, out)
        done = self.driver.run(*filled, folder=root.parent, mode=COUNT, log=log)
        assert done.calls, done.err
        assert done.code == (name == "learn, the gate refuses"), done.err
        calls = read_log(log)
        writes = (
            i
            for i, (call, following) in enumerate(zip(calls, [*calls[1:], None], strict=True))
            if call.kind == "write" and (following is None or following.path != call.path)
        )
        return Scenario(
            name=name,
            before=before,
            argv=argv,
            after=end_state(root),
            out=end_state(out) if out.exists() else {},
            calls=done.calls,
            writes=tuple(writes),
            code=done.code,
        )

    def place(self, before: Path | None) -> tuple[Path, Path]:
        """A fresh copy of a store, and a path beside it that does not exist."""
        folder = self.driver.scratch / "place"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if before is not None:
            shutil.copytree(before, folder / "store")
        return folder / "store", folder / "out"

    @staticmethod
    def filled(argv, root: Path, out: Path | None = None) -> list[str]:
        """The command with its paths."""
        places = {"STORE": str(root), "OUT": str(out)}
        return [places.get(word, word) for word in argv]

    def scenarios(self):
        """Name to what returns store and command of every scenario; see `scenario`."""

        def on(base, *argv):
            return lambda: (self.base(base), argv)

        return {
            "create": lambda: (None, self.create()),
            "learn, a group opens": on("one", *self.learn("numbers")),
            "learn, a group is retrained": on("two", *self.learn("shades")),
            "resume": on("interrupted", *self.learn("shades")),
            "learn, the gate refuses": on("strict", *self.learn("cold")),
            "accept": on("refused", "accept", "STORE", "2"),
            "rollback": on("three", "rollback", "STORE", "1"),
            "groups rename": on("three", "groups", "rename", "STORE", "g1", "paint"),
            "groups retire": on("three", "groups", "retire", "STORE", "g2"),
            "groups merge": on("three", "groups", "merge", "STORE", "g1", "g2"),
            "groups split": on("three", "groups", "split", "STORE", "g1", "--task", "shades"),
            "prune": on("branched", "prune", "STORE", "--keep-last", "1", "--pin", "1", "--yes"),
            "export": on("three", "export", "STORE", "OUT"),
        }


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One call that the shim saw."""

    kind: str
    path: str
    to: str
    offset: int
    data: bytes


def read_log(path: Path) -> list[Operation]:
    """The calls of a command, in order."""
    content, operations, i = path.read_bytes(), [], 0
    while i < len(content):
        end = content.index(b"\n", i)
        kind, one, two, offset, size = content[i:end].decode().split("\t")
        i = end + 1 + int(size)
        operations.append(
            Operation(kind=kind, path=one, to=two, offset=int(offset), data=content[end + 1 : i])
        )
    return operations
