"""Runs commands of lcia in forked children, each armed to be killed or to fail at one call.

Importing torch takes seconds: it is done once, and a child starts in milliseconds. Reads JSON
lines, a list of requests each, and answers each with a line.
"""

import ctypes
import gc
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

SHIM = ctypes.CDLL(None)

MODULES = (
    *("lcia.cli.main", "lcia.cli.learn", "lcia.cli.groups", "lcia.learner", "lcia.models.host"),
    *("lcia.assistant", "lcia.exports.vllm", "lcia.demo.embedded", "lcia.reports.html"),
    *("transformers.trainer", "transformers.models.llama.modeling_llama"),
    *("peft.tuners.lora", "transformers.generation"),
)
"""What commands import, besides the libraries themselves."""


def preload():
    import accelerate  # noqa: F401
    import peft  # noqa: F401
    import torch
    import transformers

    for name in ("LlamaForCausalLM", "LlamaConfig", "PreTrainedTokenizerFast", "Trainer"):
        getattr(transformers, name)
    torch.set_num_threads(1)
    for module in MODULES:
        __import__(module)


def child(request, log):
    """Run one command; never returns."""
    os.chdir(request["cwd"])
    out = os.open(request["out"], os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    err = os.open(request["err"], os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.argv = ["lcia", *request["argv"]]
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    if "memory_bytes" in request:
        own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (request["memory_bytes"] + own,) * 2)
    arm = request.get("arm")
    if arm:
        folder = os.path.realpath(arm["folder"]).encode()
        opens = int(arm.get("opens", False))
        SHIM.shim_arm(
            folder, arm["mode"], ctypes.c_long(arm["at"]), arm.get("error", 0), log, opens
        )
    code = 1
    try:
        from lcia.cli.main import main

        main()
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        SHIM.shim_disarm()
        sys.stdout.flush()
        sys.stderr.flush()
        calls = ctypes.CFUNCTYPE(ctypes.c_long)(("shim_calls", SHIM))()
        Path(request["calls"]).write_text(str(calls))
        os._exit(code)


def start(request, scratch):
    """Fork a child for a request; return what is needed to wait for it."""
    files = {name: f"{scratch}/{name}" for name in ("out", "err", "calls")}
    log = -1
    if request.get("log"):
        log = os.open(request["log"], os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    pid = os.fork()
    if pid == 0:
        child({**request, **files}, log)
    if log >= 0:
        os.close(log)
    return pid, files, time.monotonic()


def finish(request, pid, files, started):
    """Wait for a child, at most its time, and say how it ended."""
    deadline, hung = started + request.get("timeout_s", 120), False
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            hung = True
            os.kill(pid, 9)
            ended = os.waitpid(pid, 0)
            break
        time.sleep(0.002)
    calls = Path(files["calls"])
    return {
        "code": os.waitstatus_to_exitcode(ended[1]),
        "hung": hung,
        "out": _read(files["out"]),
        "err": _read(files["err"]),
        "calls": int(calls.read_text()) if calls.is_file() else None,
        "seconds": time.monotonic() - started,
    }


def _read(path):
    return Path(path).read_text(errors="replace") if Path(path).is_file() else ""


def say(value):
    """Answer with a JSON line."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def main():
    """Answer requests until there are no more."""
    preload()
    gc.freeze()  # else every child copies what its collector touches
    say({"ready": True})
    for line in sys.stdin:
        requests = json.loads(line)
        with tempfile.TemporaryDirectory() as scratch:
            started = []
            for i, request in enumerate(requests):
                os.mkdir(f"{scratch}/{i}")
                started.append(start(request, f"{scratch}/{i}"))
            pairs = zip(requests, started, strict=True)
            answers = [finish(request, *running) for request, running in pairs]
        say(answers)


if __name__ == "__main__":
    main()
