"""The scorers of the eight visual tasks, against cases worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcia.evaluation.scorers_visual import (
    box_iou,
    contains_either,
    gqa_match,
    ignore_case,
    normalise_vqa,
    option_letter,
    vqa_accuracy,
)


@pytest.mark.parametrize(
    ("prediction", "score"),
    [
        ("B", 1),
        (" B\n", 1),
        ("B.", 1),
        ("(B)", 1),
        ("B. the lungs", 1),
        ("The answer is B.", 1),
        ("Because of this, the answer is (B) the lungs.", 1),
        ("The answer is B. No, the answer is C.", 0),
        ("b", 0),
        ("Both", 0),
        ("A", 0),
        ("", 0),
    ],
)
def test_option_letter_of_science_qa(prediction, score):
    assert option_letter(prediction, ["B"]) == score


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Cat", "cat"),
        ("an  old\tdog\n", "old dog"),
        ("Two dogs", "2 dogs"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("couldntve", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("it's", "it's"),
        ("its", "its"),
        ("3.5 cm.", "3.5 cm"),
        ("a.m.", "am"),
        ("red, white", "red white"),  # the comma touches a space: removed
        ("red/white", "red white"),  # the slash does not: replaced by a space
        ("1,000/day", "1000day"),  # a comma between digits: all marks are removed
        ("t-shirt", "t shirt"),
        ("100%", "100%"),
        ("?", ""),
    ],
)
def test_normalisation_of_the_vqa_evaluation(text, normal):
    assert normalise_vqa(text) == normal


TEN = ["red"] * 2 + ["Red."] + ["pink"] * 3 + ["dark red"] * 4


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        # Three of ten: as one of the three 2 others agree (2/3), as one of the seven 3 do (1).
        ("red", TEN, (3 * 2 / 3 + 7 * 1) / 10),
        # Four of ten: 3 or 4 others always agree.
        ("the dark red", TEN, 1.0),
        ("green", TEN, 0.0),
        # One of ten: as that one 0 others agree, as one of the nine 1 does.
        ("blue", ["blue"] + ["navy"] * 9, (0 + 9 * 1 / 3) / 10),
        # Two of ten: 1/3 twice, 2/3 eight times.
        ("blue", ["blue"] * 2 + ["navy"] * 8, (2 * 1 / 3 + 8 * 2 / 3) / 10),
        ("two", ["2"], 1.0),
        ("three", ["2"], 0.0),
    ],
)
def test_vqa_accuracy_over_ten_answers(prediction, answers, score):
    assert vqa_accuracy(prediction, answers) == pytest.approx(score, abs=1e-12)


@given(st.lists(st.sampled_from(["a b", "c", "d"]), min_size=10, max_size=10))
def test_vqa_accuracy_is_the_mean_over_leaving_one_out(answers):
    for word in ("c", "d", "e"):
        left_out = [answers[:i] + answers[i + 1 :] for i in range(10)]
        mean = sum(min(1, others.count(word) / 3) for others in left_out) / 10
        assert vqa_accuracy(word, answers) == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "score"),
    [
        ("Tabby cat", 1),
        ("It is a tabby cat.", 1),
        ("cat", 1),
        ("dog", 0),
        ("", 0),
    ],
)
def test_containment_either_way_of_imagenet(prediction, score):
    assert contains_either(prediction, ["tabby Cat"]) == score


@pytest.mark.parametrize(
    ("prediction", "score"),
    [("Stephen King", 1), (" stephen king ", 1), ("King", 0), ("Stephen King.", 0)],
)
def test_vizwiz_and_ocr_vqa_ignore_case_only(prediction, score):
    assert ignore_case(prediction, ["Stephen King"]) == score


@pytest.mark.parametrize(
    ("prediction", "score"), [("Left.", 1), ("left", 1), ("the left", 0), ("right", 0)]
)
def test_gqa_match(prediction, score):
    assert gqa_match(prediction, ["left"]) == score


@pytest.mark.parametrize(
    ("prediction", "score"),
    [
        ("[0.10, 0.20, 0.50, 0.60]", 1),
        ("0.5 0.6 0.1 0.2", 1),  # the other two corners
        ("The box is (.1, .2), (.5, .6).", 1),
        # Moved right by 0.1: overlap 0.3 x 0.4 = 0.12, union 0.32 - 0.12 = 0.20, IoU 0.6.
        ("[0.2, 0.2, 0.6, 0.6]", 1),
        # Moved right by 0.2: overlap 0.2 x 0.4 = 0.08, union 0.24, IoU 1/3.
        ("[0.3, 0.2, 0.7, 0.6]", 0),
        ("[0.6, 0.6, 0.9, 0.9]", 0),
        ("[0.3, 0.3, 0.3, 0.3]", 0),
        ("0.1, 0.2, 0.5", 0),
        ("on the left", 0),
    ],
)
def test_box_iou(prediction, score):
    assert box_iou(prediction, ["[0.1, 0.2, 0.5, 0.6]"]) == score


def test_an_iou_of_one_half_is_not_above_it():
    # Half of the unit square: overlap 0.5, union 1.
    assert box_iou("[0, 0, 0.5, 1]", ["[0, 0, 1, 1]"]) == 0
    assert box_iou("[0, 0, 0.51, 1]", ["[0, 0, 1, 1]"]) == 1


@given(st.floats(0.01, 1), st.floats(0.01, 1))
def test_the_unit_of_the_boxes_does_not_matter(x, y):
    guess, truth = [0.0, 0.0, x, y], [0.0, 0.0, 1.0, 0.75]
    texts = [[str(corner * unit) for corner in guess] for unit in (1.0, 640.0)]
    right = [[" ".join(str(corner * unit) for corner in truth)] for unit in (1.0, 640.0)]
    if abs(x * min(y, 0.75) / (0.75 + x * max(0.0, y - 0.75)) - 0.5) > 1e-6:
        assert box_iou(" ".join(texts[0]), right[0]) == box_iou(" ".join(texts[1]), right[1])
