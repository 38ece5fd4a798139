"""Splitting texts of any language."""

import pytest

from lcia.grouping import GroupingConfig, InstructionCodebook, InstructionRecipe, Router
from lcia.grouping.terms import unicode_terms


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
