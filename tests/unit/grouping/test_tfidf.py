"""Pair similarity against golden values, scikit-learn and itself."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer

from lcia.grouping import pair_similarity
from lcia.grouping.terms import STOP_WORDS, paper_terms
from lcia.grouping.tfidf import TfidfIndex

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "tfidf_pairs.json").read_text())

WORDS = "classify Classify translate ticket ticket's naïve straße 日本語 x a the of 12 7 _id e-mail"
words = st.sampled_from(WORDS.split())
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
