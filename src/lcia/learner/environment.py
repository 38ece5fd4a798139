"""What a result was made with."""

import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("lcia", "torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "scipy")
CHECKOUT = Path(__file__).parents[3]


def environment() -> dict[str, str]:
    """Return what shapes results and their times: the machine, Python, packages, the revision.

    ``revision`` is git's name of the commit where lcia runs from a checkout, with ``-dirty``
    behind it where files differ from that; else it is missing.
    """
    return dict(_environment())


@cache
def _environment() -> dict[str, str]:
    found = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": str(torch.get_num_threads()),
    }
    if torch.cuda.is_available():
        found["accelerator"] = torch.cuda.get_device_name()
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    if (CHECKOUT / ".git").exists():
        found["revision"] = _revision()
    return found


def _processor() -> str:
    """Return the processor's model: Linux says it in a file, others through ``platform``."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _revision() -> str:
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        return f"unknown: {error}"
    return described.stdout.strip()
