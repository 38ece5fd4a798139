"""A server and its worker as processes of their own, and what they are asked to learn."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from conftest import make_task
from lcia.live.jobs import ENDED

SHADES = {"blue": "b", "white": "w"}


def lines_of(task) -> bytes:
    records = [
        {
            "messages": [
                {"role": "user", "content": sample.prompt},
                {"role": "assistant", "content": sample.answers[0]},
            ]
        }
        for sample in task.train
    ]
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def data(words=SHADES, *, name="shades", instruction="Say the letter of the colour.") -> bytes:
    return lines_of(make_task(name, instruction, words, train=20))


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "lcia", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        **options,
    )


@contextmanager
def server(root, *options):
    """Serve an assistant in a process of its own; yield its address and the process."""
    log = root.with_suffix(".log")
    with log.open("wb") as written:
        process = start("serve", root, "--port", 0, "--max-context", 256, *options, stderr=written)
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"listening on (http://\S+)", log.read_text())):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        while True:
            with suppress(httpx.TransportError):
                if httpx.get(found[1] + "/readyz").status_code == 200:
                    break
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield found[1], process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def wait_for(client, job, *, status="succeeded", seconds=120):
    deadline = time.monotonic() + seconds
    while (found := client.fine_tuning.jobs.retrieve(job)).status not in ENDED:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    assert found.status == status, found
    return found


def postgres_programs():
    """Folder of PostgreSQL's programs; None where it is not installed."""
    found = shutil.which("initdb")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return Path(found).resolve().parent if found else next(iter(folders), None)


@contextmanager
def postgres():
    """A PostgreSQL server of its own, on a socket in a folder that is gone afterwards; its URL."""
    programs, folder = postgres_programs(), Path(tempfile.mkdtemp(prefix="lcia-pg-"))
    user = []
    if os.geteuid() == 0:  # it refuses to run as root
        shutil.chown(folder, "postgres")
        user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]

    def run(program, *arguments):
        command = [*user, programs / program, "-D", folder / "data", *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)

    try:
        run("initdb", "--auth=trust", "--username=lcia", "--no-sync")
        options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -F"
        run("pg_ctl", "-w", "-l", folder / "log", "-o", options, "start")
        yield f"postgresql+psycopg://lcia@/postgres?host={folder}"
    finally:
        with suppress(subprocess.CalledProcessError):
            run("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)
