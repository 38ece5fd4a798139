"""Commands that are killed or fail at a chosen call to the file system; what a store came to."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import lcia

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SOURCE = Path(lcia.__file__).parents[1]
COUNT, KILL, FAIL, KILL_AFTER = 1, 2, 3, 4


@dataclass(frozen=True, kw_only=True)
class Done:
    """A command that ended."""

    code: int
    hung: bool
    out: str
    err: str
    calls: int | None
    seconds: float

    @property
    def lines(self):
        """What it said on stderr, as a terminal shows it at the end."""
        shown = (line.rpartition("\r")[2] for line in self.err.split("\n"))
        return [line for line in shown if line.strip()]


class Driver:
    """A process that runs commands in forked children; see ``server``."""

    def __init__(self):
        self.scratch = Path(tempfile.mkdtemp(prefix="campaign-"))
        shim = self.scratch / "shim.so"
        compile_ = ["cc", "-shared", "-fPIC", "-O1", "-o", str(shim), str(HERE / "shim.c"), "-ldl"]
        subprocess.run(compile_, check=True)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "campaign.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={
                **os.environ,
                "LD_PRELOAD": str(shim),
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
                # As the command line sets them before it imports the libraries.
                "TQDM_DISABLE": "1",
                "TRANSFORMERS_VERBOSITY": "error",
                "PYTHONPATH": os.pathsep.join([str(SOURCE), str(ROOT / "tests"), str(ROOT)]),
            },
        )
        assert json.loads(self._process.stdout.readline())["ready"]

    def run(self, *argv, folder=None, mode=None, at=-1, **more):
        """Run ``lcia ARGV``; ``folder`` is what the shim watches."""
        cwd = more.pop("cwd", self.scratch)
        request = {"argv": [str(a) for a in argv], "cwd": str(cwd)}
        if mode is not None:
            arm = {"folder": str(folder), "mode": mode, "at": at}
            arm |= {key: more.pop(key) for key in ("error", "opens") if key in more}
            request["arm"] = arm
        request |= {key: str(value) if key == "log" else value for key, value in more.items()}
        return self._ask([request])[0]

    def run_together(self, commands):
        """Run several commands at the same time."""
        return self._ask([{"argv": argv, "cwd": str(self.scratch)} for argv in commands])

    def _ask(self, requests):
        self._process.stdin.write(json.dumps(requests) + "\n")
        self._process.stdin.flush()
        return [Done(**answer) for answer in json.loads(self._process.stdout.readline())]

    def close(self):
        """End it."""
        self._process.stdin.close()
        self._process.wait(timeout=60)
        shutil.rmtree(self.scratch)


VOLATILE = ("seconds", "environment", "sha256", "files", "earlier", "time", "eta_s", "sum")
"""Keys that tell times and machines, and hashes of files that do."""


def end_state(root):
    """Every file by its hash, without times and what hashes times; unfinished runs do not count.

    Of candidates that the gate refused, the task counts: a command that is repeated after it ended
    may refuse once more.
    """
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        top, _, rest = name.partition("/")
        if not path.is_file() or name in (".lock", ".audit-lock") or top in ("runs", "refused"):
            if top == "refused" and rest:
                found[f"refused/{rest.partition('-')[2].partition('/')[0]}"] = ""
            continue
        content = path.read_bytes()
        if path.suffix == ".json":
            content = json.dumps(_plain(json.loads(content)), sort_keys=True).encode()
        elif path.name == "journal.jsonl":
            events = [_plain(json.loads(line)) for line in content.split(b"\n") if line]
            # A step is told again after a resume; only its last telling counts.
            steps = {e.get("step"): e for e in events if e.get("event") == "step"}
            content = json.dumps(list(steps.values()), sort_keys=True).encode()
        elif name == "audit.jsonl":
            # What was done, whatever of it was told again after a kill; a cut-off line is no entry.
            entries = [json.loads(line) for line in content.split(b"\n") if line]
            chain = ("number", "time", "previous", "sha256")
            told = [{k: v for k, v in e.items() if k not in chain} for e in entries]
            done = {json.dumps(e, sort_keys=True) for e in told if e["what"] != "torn"}
            content = "\n".join(sorted(done)).encode()
        found[name] = hashlib.sha256(content).hexdigest()[:16]
    return found


def verified(root):
    """Open and verify a store; return what is wrong, or None."""
    from lcia.errors import LciaError
    from lcia.learner import Store
    from lcia.store.verify import verify

    try:
        Store.open(root)
        findings = verify(root)
    except LciaError as error:
        return f"does not open: {error}"
    return f"verify: {findings[0]}" if findings else None


def difference(scenario, root, out):
    """Compare with the undisturbed end; return the first file that differs, or None."""
    pairs = ((end_state(root), scenario.after),)
    if scenario.out:
        pairs += ((end_state(out), scenario.out),)
    for found, expected in pairs:
        for name in sorted(found.keys() | expected.keys()):
            if found.get(name) != expected.get(name):
                return f"{name} differs from the undisturbed one"
    leftovers = [path.name for path in root.parent.iterdir() if path not in (root, out)]
    return f"left beside the store: {', '.join(leftovers)}" if leftovers else None


def _plain(value):
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k not in VOLATILE}
    return [_plain(item) for item in value] if isinstance(value, list) else value
