"""What a result was made with."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("lcia", "torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "scipy")


def environment() -> dict[str, str]:
    """Return versions of Python, of the platform and of the packages that shape results."""
    found = {"python": sys.version.split()[0], "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
