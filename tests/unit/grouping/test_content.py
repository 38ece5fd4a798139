"""What prompts are about: terms, weights, and routing by them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcia.errors import DataError
from lcia.grouping import GroupingConfig, InstructionCodebook, InstructionRecipe, Router
from lcia.grouping.content import (
    BACKGROUND,
    TERMS_KEPT,
    VOCABULARY,
    Content,
    ContentIndex,
    TermCounts,
    content_terms,
)
from lcia.grouping.index import unicode_terms

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


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Classify THE ticket", ["classify", "ticket"]),
        ("Straße STRASSE ﬁne", ["strasse", "strasse", "fine"]),
        ("翻訳して", ["翻訳", "訳し", "して"]),
        ("分类 text", ["分类", "text"]),
        ("字", ["字"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("cafe\u0301 café", ["café", "café"]),
        ("sort\x00list\u200bnow", ["sort", "list"]),
        ("\ud800 ok", ["ok"]),
        ("Ｆｕｌｌ ｗｉｄｔｈ", ["width"]),
        ("한국어로 번역", ["한국어로", "번역"]),
        ("", []),
    ],
)
def test_terms_by_hand(text, wanted):
    assert unicode_terms(text) == wanted


def test_chinese_instructions_are_told_apart_only_by_the_unicode_terms():
    texts = {"classify": "请对下面的新闻进行分类", "translate": "请把下面的句子翻译成英文"}
    asked = "请对这条新闻进行分类"
    found = {}
    for similarity in ("tfidf", "tfidf_unicode"):
        codebook = InstructionCodebook(GroupingConfig(similarity=similarity))
        for task in ("translate", "classify"):
            whole = InstructionRecipe(kind="whole").fit([texts[task]])
            codebook.add(None, whole, task=task)
        found[similarity] = Router(codebook).route(asked)
    assert found["tfidf"].similarity == 0
    assert found["tfidf_unicode"].group == "g2"
    assert found["tfidf_unicode"].similarity > 0.4 > found["tfidf_unicode"].runner_up_similarity


RAIN = [f"It will {v} in {t} today." for v in ("rain", "snow") for t in ("Rome", "Oslo")]
TASKS = {
    "weather": ("Say whether one needs an umbrella.", RAIN),
    "money": ("Name the sum that is meant.", MONEY),
}


def taught(**settings):
    codebook = InstructionCodebook(GroupingConfig(**{"below": "content", **settings}))
    for name, (instruction, texts) in TASKS.items():
        prompts = [f"{instruction}\n{text}" for text in texts]
        extraction = InstructionRecipe.parse("first_line").fit(prompts)
        codebook.add(None, extraction, task=name, prompts=prompts)
    return codebook


def test_a_known_instruction_decides_whatever_the_prompt_is_about():
    decision = Router(taught()).route(f"{TASKS['money'][0]}\n{WEATHER[0]}")
    assert (decision.group, decision.reason) == ("g2", "reached")


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("Do I get wet?\nIt will rain in Oslo today.", "g1"),
        ("It will snow in Rome today.", "g1"),
        ("Sag mir den Betrag.\nThe bank raised fees by 7 percent.", "g2"),
    ],
)
def test_a_reworded_or_missing_instruction_reaches_the_group_by_content(text, group):
    decision = Router(taught()).route(text)
    assert (decision.group, decision.reason) == (group, "below_content")


def test_what_was_never_taught_goes_to_the_base_model():
    decision = Router(taught()).route("Compose a limerick concerning penguins")
    assert (decision.group, decision.reason) == (None, "off_topic")


def test_a_retired_group_is_not_chosen():
    codebook = taught()
    codebook.retire("g1")
    assert Router(codebook).route("Wet?\nIt will rain in Oslo today.").group != "g1"


def test_it_is_saved_and_survives_merge_and_split(tmp_path):
    codebook = taught()
    codebook.save(tmp_path / "codebook.json")
    asked = "Wet?\nIt will rain in Oslo today."
    assert Router(InstructionCodebook.load(tmp_path / "codebook.json")).route(asked).group == "g1"
    codebook.merge("g2", "g1")
    assert Router(codebook).route(asked).group == "g2"
    new = codebook.split("g2", ["weather"])
    assert Router(codebook).route(asked).group == new


def test_no_prompt_is_kept_only_terms_that_stand_in_two(tmp_path):
    codebook = taught()
    codebook.save(tmp_path / "codebook.json")
    text = (tmp_path / "codebook.json").read_text()
    assert not any(prompt in text for prompt in (*RAIN, *MONEY))
    assert '"it will": 4' in text


def test_prompts_are_needed():
    codebook = InstructionCodebook(GroupingConfig(below="content"))
    extraction = InstructionRecipe.parse("first_line").fit(["Say a.\nb"])
    with pytest.raises(DataError, match="below is 'content'"):
        codebook.add(None, extraction, task="a")


def test_other_policies_keep_no_content():
    codebook = taught(below="nearest")
    assert all(task.content is None for group in codebook.groups for task in group.tasks)
    assert "content" not in str(codebook.to_dict()["groups"])
