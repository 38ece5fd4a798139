"""Runs ``lcia`` in this process, and says what is wrong with how it ended."""

import io
import os
import re
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass

LIMIT_S = 20
"""Seconds of this processor that a command may take: a busy machine is no fault."""

WAIT_S = 180
"""Seconds that it may take and wait."""

LINES = 60
CHARACTERS = 2_000
"""Lines on stderr, and characters in one, that an error may take."""

UNFORESEEN = "Run with --debug for the traceback."
PROGRESS = re.compile(r"\rLoading weights:[^\r\n]*")
"""Transformers' own, which lcia turns off where it is the first to import it."""

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class HangError(BaseException):
    """The command took longer than ``LIMIT_S``."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended: its exit code, what it printed, the seconds it took."""

    code: int
    out: str
    err: str
    seconds: float

    def problem(self) -> str | None:
        """Say what no command may do; None if all is well."""
        lines = self.err.splitlines()
        if self.code == HANGS:
            return f"hangs: more than {LIMIT_S} s"
        if UNFORESEEN in self.err or "Traceback (most recent" in self.err:
            return f"unforeseen: {self.err.strip()[:300]}"
        if self.code not in (0, 1, 2):
            return f"exit code {self.code}: {self.err[:200]}"
        if self.code and not self.err.strip():
            return f"exit code {self.code} without a word"
        if len(lines) > LINES or any(len(line) > CHARACTERS for line in lines):
            return f"{len(lines)} lines, the longest of {max(map(len, lines))} characters"
        for text in (self.out, PROGRESS.sub("", self.err)):
            if found := CONTROL.search(text):
                return f"control character {found[0]!r} on the terminal: {text[:300]!r}"
        return None


HANGS = 124


def run(*argv: str) -> Ended:
    """Run ``lcia ARGV`` as its ``main`` does, with an empty stdin, for a limited time."""
    started = time.monotonic()
    with _streams(argv) as (out, err):
        code = _main()
        sys.stdout.flush()
        sys.stderr.flush()
        return Ended(
            code=code,
            out=out.getvalue().decode("utf-8", "replace"),
            err=err.getvalue().decode("utf-8", "replace"),
            seconds=time.monotonic() - started,
        )


def _main() -> int:
    from lcia.cli.main import main

    def late(*_):
        raise HangError

    timers = (
        (signal.ITIMER_PROF, signal.SIGPROF, LIMIT_S),
        (
            signal.ITIMER_REAL,
            signal.SIGALRM,
            WAIT_S,
        ),
    )
    previous = [signal.signal(name, late) for _, name, _ in timers]
    for timer, _, limit in timers:
        # Again every second: a first one may be swallowed where Python cannot raise.
        signal.setitimer(timer, limit, 1)
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(end.code + "\n")
            return 1
        return end.code or 0
    except HangError:
        return HANGS
    finally:
        for (timer, name, _), handler in zip(timers, previous, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(name, handler)
    return 0


@contextmanager
def _streams(argv):
    kept = sys.argv, sys.stdin, sys.stdout, sys.stderr, sys.__stdout__, dict(os.environ)
    out, err = io.BytesIO(), io.BytesIO()
    sys.argv = ["lcia", *argv]
    sys.stdin = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    stdout = io.TextIOWrapper(out, encoding="utf-8", write_through=True)
    sys.stdout = sys.__stdout__ = stdout
    sys.stderr = io.TextIOWrapper(
        err, encoding="utf-8", errors="backslashreplace", write_through=True
    )
    try:
        yield out, err
    finally:
        sys.argv, sys.stdin, sys.stdout, sys.stderr, sys.__stdout__, environment = kept
        os.environ.clear()
        os.environ.update(environment)
