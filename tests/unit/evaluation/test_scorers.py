"""Scorers against cases worked out by hand and against the rouge-score package."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from lcia.errors import DataError
from lcia.evaluation import mean_percent, score_each
from lcia.evaluation.scorers import (
    box_iou,
    choice,
    contains,
    contains_either,
    exact_match,
    gqa_match,
    ignore_case,
    normalise,
    normalise_vqa,
    option_letter,
    rouge_l,
    vqa_accuracy,
)
from lcia.registry import SCORERS


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("  Paris.\n", "paris"),
        ('"New   York"!', "new york"),
        ("**Yes**", "yes"),
        ("The cat", "the cat"),
        ("-5", "-5"),
        ("$5.00", "$5.00"),
        (".5", ".5"),
        ("50%", "50%"),
        ("C++", "c++"),
        ("1/12", "1/12"),
        ("don't", "don't"),
        ("?", "?"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("Cafe\u0301", "caf\u00e9"),
        ("", ""),
    ],
)
def test_normalise(text, normal):
    assert normalise(text) == normal


@given(st.text(st.characters(max_codepoint=126)))
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("Paris.", ["paris"], 1),
        ("Paris", ["London", "PARIS"], 1),
        ("Paris, France", ["Paris"], 0),
        ("the cat", ["cat"], 0),
        ("11/2", ["1/12"], 0),
        ("5", ["-5"], 0),
        ("!", ["?"], 0),
        ("", ["Paris"], 0),
        ("", [""], 1),
    ],
)
def test_exact_match(prediction, answers, score):
    assert exact_match(prediction, answers) == score


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("The capital is Paris.", ["paris"], 1),
        ("parison", ["paris"], 0),
        ("15 apples", ["5"], 0),
        ("I count 5 apples", ["6", "5"], 1),
        ("This is C++ code", ["C++"], 1),
        ("New\nYork", ["new york"], 1),
        ("答えは東京です", ["東京"], 1),
        ("anything", [""], 0),
        ("", [""], 1),
        ("parison and Paris", ["Paris"], 1),
    ],
)
def test_contains(prediction, answers, score):
    assert contains(prediction, answers) == score


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        # Stems: cat sat / the cat sat. LCS 2, P = 1, R = 2/3.
        ("cats sat", ["The cat sat."], 0.8),
        # LCS (police, the, gunman) 3 of 4 words on both sides.
        ("police kill the gunman", ["police ended the gunman"], 0.75),
        # The second reference is the better one: LCS 1, P = 1/2, R = 1.
        ("a dog", ["zebra", "dog"], 2 / 3),
        ("dog", ["cat"], 0),
        ("", ["cat"], 0),
        # Greek: the package alone deletes every letter and scores 0.
        ("καλημέρα κόσμε", ["καλημέρα κόσμε"], 1),
        # Four characters of five on the one side, all on the other: P = 1, R = 4/5.
        ("東京都市", ["東京都の市"], 8 / 9),
    ],
)
def test_rouge_l(prediction, answers, score):
    assert rouge_l(prediction, answers) == pytest.approx(score, abs=1e-12)


_WORDS = st.lists(
    st.sampled_from(["the", "Running", "runs", "dog-house", "U.S.A", "_x_", "3.5", "ties", "died"])
)


@given(prediction=_WORDS, answers=st.lists(_WORDS, min_size=1, max_size=3))
def test_rouge_l_is_super_natural_instructions_on_ascii(prediction, answers):
    official = RougeScorer(["rougeL"], use_stemmer=True)
    text, references = " ".join(prediction), [" ".join(answer) for answer in answers]
    expected = max(official.score(target, text)["rougeL"].fmeasure for target in references)
    assert rouge_l(text, references) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("B", ["B"], 1),
        ("b", ["B"], 1),
        ("(b)", ["B"], 1),
        ("b) a cat", ["B"], 1),
        ("B. a cat", ["(B)"], 1),
        ("B", ["B. a cat"], 1),
        ("The answer is B because it is red", ["B"], 1),
        ("It must be (b).", ["B"], 1),
        ("B, not A", ["A"], 0),
        ("A cat is on the mat: C", ["C"], 1),
        ("I think D", ["D"], 1),
        ("I'm sure it is C", ["C"], 1),
        ("The answer is A because", ["A"], 1),
        ("Option A is right", ["A"], 1),
        ("Ambulance", ["A"], 0),
        ("", ["A"], 0),
    ],
)
def test_choice_of_a_letter(prediction, answers, score):
    assert choice(prediction, answers) == score


def test_choice_ignores_letters_beyond_the_last_option():
    assert choice("Vitamin C: B", ["B"], options=["A", "B"]) == 1
    assert choice("Vitamin C: B", ["B"], options=["A", "B", "C"]) == 0


@pytest.mark.parametrize(
    ("prediction", "answer", "score"),
    [
        ("Positive.", "positive", 1),
        ("It is negative, not positive", "negative", 1),
        ("It is negative, not positive", "positive", 0),
        ("Very positive!", "positive", 0),
        ("Very positive!", "very positive", 1),
        ("nonnegative", "negative", 0),
        ("no idea", "positive", 0),
    ],
)
def test_choice_of_a_label(prediction, answer, score):
    options = ["positive", "negative", "very positive", "very negative"]
    assert choice(prediction, [answer], options=options) == score


def test_choice_prefers_the_longest_of_options_that_begin_together():
    assert choice("no comment", ["no"], options=["no", "no comment"]) == 0
    assert choice("no comment", ["no comment"], options=["no", "no comment"]) == 1


@pytest.mark.parametrize("name", SCORERS.names())
@given(prediction=st.text(max_size=20), answer=st.text(min_size=1, max_size=20))
def test_every_scorer_keeps_its_promises(name, prediction, answer):
    scorer = SCORERS.get(name)
    alone = scorer(prediction, [answer])
    assert isinstance(alone, float)
    assert 0 <= alone <= 1
    assert scorer(prediction, ["another", answer], options=["another", answer]) == scorer(
        prediction, [answer, "another"], options=[answer, "another"]
    )


@pytest.mark.parametrize("name", SCORERS.names())
@pytest.mark.parametrize("answer", ["B", "negative", "New York", "3.5"])
def test_every_scorer_gives_1_to_the_answer_itself(name, answer):
    answer = "[0.1, 0.2, 0.5, 0.6]" if name == "box_iou" else answer
    assert SCORERS.get(name)(answer, [answer], options=["A", answer]) == 1


def test_score_each_reads_the_options_off_the_whole_task():
    predictions = ["negative, not positive", "negative, not positive", "none"]
    answers = [["positive"], ["negative"], ["positive"]]
    scores = score_each(choice, predictions, answers)
    assert scores == [0, 1, 0]
    assert mean_percent(scores) == pytest.approx(100 / 3)


def test_score_each_needs_one_prediction_per_instance():
    with pytest.raises(DataError, match="1 predictions for 2 instances"):
        score_each(exact_match, ["a"], [["a"], ["b"]])


def test_a_task_without_instances_has_no_score():
    with pytest.raises(DataError, match="no score"):
        mean_percent([])


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
