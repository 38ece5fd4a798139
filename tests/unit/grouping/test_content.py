"""Content: an oracle by hand, properties, and tasks told apart that share an instruction."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcia.grouping.content import (
    BACKGROUND,
    TERMS_KEPT,
    VOCABULARY,
    Content,
    ContentIndex,
    TermCounts,
    content_terms,
)

INSTRUCTION = "Answer with one word."
WEATHER = [
    f"It will {verb} in {town} today." for verb in ("rain", "snow") for town in ("Rome", "Oslo")
]
MONEY = [f"The bank raised {what} by {n} percent." for what in ("rates", "fees") for n in (2, 3)]


def content_of(texts):
    return Content.of([f"{INSTRUCTION}\n{text}" for text in texts], texts)


def index_of(*tasks):
    index = ContentIndex()
    for texts in tasks:
        index.add(content_of(texts))
    return index


def log_ratio_by_hand(terms, views, row):
    """The formula of the docstring, term by term, with nothing shared with the index."""
    total = 0.0
    for term in terms:
        shares = [view.counts.get(term, 0) / sum(view.counts.values()) for view in views]
        if not any(shares):
            continue
        background = (sum(shares) + 1 / VOCABULARY) / (len(views) + 1)
        mixed = (1 - BACKGROUND) * shares[row] + BACKGROUND * background
        total += math.log(mixed / background)
    return total


def test_evidence_and_fit_equal_the_formula():
    contents = [content_of(WEATHER), content_of(MONEY)]
    asked = "Will it rain in Oslo, or will the bank close?"
    reading = index_of(WEATHER, MONEY).read(asked)
    terms = content_terms(asked)
    for row in (0, 1):
        views = [
            log_ratio_by_hand(terms, [c.prompts for c in contents], row),
            log_ratio_by_hand(terms, [c.rests for c in contents], row),
        ]
        assert reading.evidence[row] == pytest.approx(sum(views), abs=1e-12)
        assert reading.fit[row] == pytest.approx(max(views) / len(terms), abs=1e-12)


def test_tasks_of_one_instruction_are_told_apart_by_what_else_prompts_say():
    index = index_of(WEATHER, MONEY)
    for row, text in ((0, "It will snow in Paris today."), (1, "The bank raised fees again.")):
        reading = index.read(f"{INSTRUCTION}\n{text}")
        assert reading.evidence.argmax() == row
        assert reading.probability[row] > 0.9


def test_a_prompt_about_nothing_that_was_taught_fits_nowhere():
    index = index_of(WEATHER, MONEY)
    taught = index.read(f"{INSTRUCTION}\n{WEATHER[0]}").fit.max()
    assert index.read("Zwölf Boxkämpfer jagen Viktor").fit.tolist() == [0.0, 0.0]
    assert taught > 0.3


def test_a_single_task_is_not_its_own_background():
    index = index_of(WEATHER)
    assert index.read(f"{INSTRUCTION}\n{WEATHER[0]}").fit[0] > 0.3


def test_an_empty_index_reads_a_prompt():
    reading = ContentIndex().read("anything")
    assert reading.evidence.shape == reading.fit.shape == reading.probability.shape == (0,)


@pytest.mark.parametrize("text", ["", " \n", "\u2028", "\x00"])
def test_a_prompt_without_terms_fits_nowhere(text):
    assert index_of(WEATHER, MONEY).read(text).fit.tolist() == [0.0, 0.0]


def test_what_stands_in_one_prompt_only_is_not_kept():
    counts = TermCounts.of(["my name is Wilhelmina", "my name is Bob", "my name is Ann"])
    assert "wilhelmina" not in " ".join(counts.counts)
    assert counts.counts["my name"] == 3


def test_terms_are_capped_and_the_most_frequent_kept():
    texts = [" ".join(f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(600))] * 3
    counts = TermCounts.of([*texts, "common waa", "common waa"])
    assert len(counts.counts) == TERMS_KEPT
    assert next(iter(counts.counts.items())) == ("waa", 5)


def test_terms_of_scripts_without_spaces_are_characters():
    assert content_terms("東京 天気") == {"東", "京", "天", "気", "東 京", "京 天", "天 気"}


def test_digits_are_alike():
    assert content_terms("in 2019") == content_terms("in 1987")


VOCABULARY_OF_TEXTS = ["rain", "snow", "bank", "rate", "rise", "fall"]
words = st.lists(st.sampled_from(VOCABULARY_OF_TEXTS), min_size=1, max_size=6)
texts = st.lists(words.map(" ".join), min_size=2, max_size=6)


@given(texts, texts)
def test_counts_do_not_depend_on_the_order_of_texts_and_add_up(a, b):
    assert TermCounts.of(a) == TermCounts.of(a[::-1])
    both, sum_ = TermCounts.of(a + b), TermCounts.of(a) + TermCounts.of(b)
    assert sum_.texts == both.texts
    assert all(both.counts[term] >= count for term, count in sum_.counts.items())


@given(texts, texts, words.map(" ".join))
def test_what_is_saved_reads_the_same(a, b, asked):
    index, again = ContentIndex(), ContentIndex()
    for part in (a, b):
        index.add(content_of(part))
        again.add(Content.from_dict(content_of(part).to_dict()))
    np.testing.assert_array_equal(index.read(asked).evidence, again.read(asked).evidence)
