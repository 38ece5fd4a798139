"""Pieces of text add up to the decoded whole, and end where a stop string begins."""

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lcia.serving.engine.text import UNFINISHED, TextStream


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model)


def pieces(tokenizer, ids, stops=()):
    stream, found = TextStream(partial(tokenizer.decode, skip_special_tokens=True), stops), []
    for token in ids:
        found.append(stream.push(token))
        if stream.stopped:
            return found, stream
    return [*found, stream.finish()], stream


@given(ids=st.lists(st.integers(0, 259), max_size=30))
def test_any_bytes_add_up(tokenizer, ids):
    found, _ = pieces(tokenizer, ids)
    assert "".join(found) == tokenizer.decode(ids, skip_special_tokens=True)


@given(text=st.text(max_size=20))
def test_no_character_is_broken(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    found, _ = pieces(tokenizer, ids)
    if UNFINISHED not in text:
        assert not any(UNFINISHED in piece for piece in found)
    assert "".join(found) == tokenizer.decode(ids, skip_special_tokens=True)


@given(
    text=st.text(alphabet="abé", max_size=20),
    stops=st.lists(st.text(alphabet="abé", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_text_ends_before_the_first_stop_string(tokenizer, text, stops):
    found, stream = pieces(tokenizer, tokenizer(text)["input_ids"], stops)
    ends = [text.index(stop) for stop in stops if stop in text]
    # The stop that is complete first ends the answer; of those, the one that begins first.
    first = next(
        (n for n in range(1, len(text) + 1) if any(stop in text[:n] for stop in stops)), None
    )
    if first is None:
        assert not ends and "".join(found) == text and not stream.stopped
    else:
        known = [text[:first].index(stop) for stop in stops if stop in text[:first]]
        assert "".join(found) == text[: min(known)] and stream.stopped


def test_a_piece_is_given_as_soon_as_it_is_certain(tokenizer):
    found, _ = pieces(tokenizer, tokenizer("a€b")["input_ids"], stops=["bc"])
    assert found == ["a", "", "", "€", "", "b"]
