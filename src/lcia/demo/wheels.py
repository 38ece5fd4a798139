"""What PyPI wheels carry, and where what was made of it is kept."""

import os
import subprocess
import sys
from pathlib import Path


def cache_dir() -> Path:
    """Return the folder of what is made once: ``LCIA_CACHE``, else the platform's cache."""
    if override := os.environ.get("LCIA_CACHE"):
        return Path(override).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("lcia", appauthor=False)


def download_wheel(requirement: str, folder: Path) -> Path:
    """Download a wheel with pip, without what it depends on, and return the file.

    Args:
        requirement: ``package==version``.
        folder: where to put it.

    Raises:
        OSError: pip could not get it; the text is the last line pip wrote.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    done = subprocess.run(
        [*command, "--dest", str(folder), requirement], capture_output=True, text=True
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise OSError((done.stderr.strip().splitlines() or ["no wheel was downloaded"])[-1])
    return wheels[0]
