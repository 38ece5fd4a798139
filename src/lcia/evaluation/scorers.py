"""Scorers: how much of an answer is right, between 0 and 1.

All have one signature, ``scorer(prediction, answers, *, options=())``; several acceptable answers
count by the best of them. Texts are compared after ``normalise``, except by ``rouge_l``, which
tokenises as ROUGE does.
"""

import functools
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, product
from typing import Any, Protocol

from lcia.errors import DataError

_OPENING = " \"'`([{<“‘«„*"
_CLOSING = " \"'`)]}>”’»*.,;:!?。，！？"
# Thai, Lao, Burmese, Khmer, kana and Han are written without spaces: a neighbouring character of
# theirs does not continue a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_NO_WORD_BEFORE, _NO_WORD_AFTER = rf"(?<![^\W{_UNSPACED}])", rf"(?![^\W{_UNSPACED}])"

_LETTER_OPTION = re.compile(r"\(?([A-Za-z])\)?[.:)]?|\(?([A-Za-z])[.:)]\s.*", re.DOTALL)
# An A or I before a lower-case word is the article or the pronoun, unless the text announces it.
_LETTER_NAMED = re.compile(
    r"(?<![\w'’])(?:[B-HJ-Z]|(?<=\()[a-z](?=\))|[AI](?!\s+[a-z])"
    r"|(?i:(?<=answer )|(?<=answer is )|(?<=option )|(?<=choice ))[AI])(?!['’]?\w)"
)


class Scorer(Protocol):
    """Scores one answer."""

    def __call__(
        self, prediction: str, answers: Sequence[str], *, options: Sequence[str] = ()
    ) -> float:
        """Return the score of one answer.

        Args:
            prediction: what the model answered.
            answers: every acceptable answer, at least one.
            options: all answers that occur in the task; only ``choice`` needs them.

        Returns:
            Between 0 (wrong) and 1 (right).
        """
        ...


def normalise(text: str) -> str:
    """Return ``text`` in the form in which answers are compared.

    Unicode NFC, case folded, white space collapsed, quotes, brackets and sentence punctuation
    around the text removed. What stands inside stays, and so do articles, signs and units:
    ``1/12`` is not ``11/2``, ``-5`` is not ``5``. A text of punctuation only is kept.

    Differs from source: Super-NaturalInstructions (after SQuAD) deletes punctuation everywhere,
    which makes different dates and numbers equal.
    """
    collapsed = " ".join(unicodedata.normalize("NFC", text.casefold()).split())
    stripped = collapsed.lstrip(_OPENING).rstrip(_CLOSING)
    return stripped or collapsed


def exact_match(prediction: str, answers: Sequence[str], *, options: Sequence[str] = ()) -> float:
    """1 if the normalised prediction equals a normalised answer, else 0."""
    return float(normalise(prediction) in {normalise(answer) for answer in answers})


def contains(prediction: str, answers: Sequence[str], *, options: Sequence[str] = ()) -> float:
    """1 if an answer occurs in the prediction as whole words, both normalised, else 0.

    An empty answer is contained in an empty prediction only.
    """
    text = normalise(prediction)
    return float(any(_position(normalise(answer), text) is not None for answer in answers))


def rouge_l(prediction: str, answers: Sequence[str], *, options: Sequence[str] = ()) -> float:
    """ROUGE-L: the F-measure of the longest common subsequence of Porter-stemmed words.

    F = 2 P R / (P + R), with P and R the subsequence's length over the number of words of the
    prediction and of the answer; the maximum over all answers.

    Source: Super-NaturalInstructions' evaluation (``rouge-score``, ``use_stemmer=True``, maximum
    over references).
    Differs from source: letters outside ASCII belong to words instead of being deleted, and
    scripts without spaces count by character. Equal to it on ASCII text.
    """
    score_multi = _rouge_scorer().score_multi
    return float(score_multi(list(answers), prediction)["rougeL"].fmeasure)


def choice(prediction: str, answers: Sequence[str], *, options: Sequence[str] = ()) -> float:
    """1 if the first option that the prediction names is a right one, else 0.

    If all options are letters (``B``, ``(b)``, ``B. a cat``), the prediction is read for a letter:
    ``b``, ``b)``, ``The answer is B because``. Otherwise for the earliest option that occurs in it
    as whole words, the longest where two begin together. A prediction that names none scores 0.

    Args:
        prediction: what the model answered.
        answers: the right options.
        options: all options of the task. Without them every letter is one, or the right options
            are the only ones known.
    """
    known = [*options, *answers]
    letters = [letter for option in known if (letter := _letter_of(option))]
    if len(letters) == len(known):
        named = _named_letter(prediction, last=max(letters) if options else "Z")
        return float(named in {_letter_of(answer) for answer in answers})
    label = _named_label(prediction, {normalise(option) for option in known})
    return float(label in {normalise(answer) for answer in answers})


def score_each(
    scorer: Scorer, predictions: Sequence[str], answers: Sequence[Sequence[str]]
) -> list[float]:
    """Score a task's predictions one by one; the options are all answers that occur in it.

    Args:
        scorer: one of the registered scorers or any callable of that form.
        predictions: one answer of the model per instance.
        answers: the acceptable answers of each instance, in the same order.

    Returns:
        One score per instance, between 0 and 1.

    Raises:
        DataError: the two sequences differ in length.
    """
    if len(predictions) != len(answers):
        raise DataError(f"{len(predictions)} predictions for {len(answers)} instances.")
    options = list(dict.fromkeys(chain.from_iterable(answers)))
    pairs = zip(predictions, answers, strict=True)
    return [scorer(prediction, right, options=options) for prediction, right in pairs]


def mean_percent(scores: Sequence[float]) -> float:
    """Return the mean of scores between 0 and 1, in percent.

    Raises:
        DataError: there are no scores, so there is no mean.
    """
    if not scores:
        raise DataError("A task without test instances has no score. Give it at least one.")
    return 100 * sum(scores) / len(scores)


def _position(label: str, text: str) -> int | None:
    if not label or label not in text:
        return 0 if label == text else None
    found = re.search(_NO_WORD_BEFORE + re.escape(label) + _NO_WORD_AFTER, text)
    return found.start() if found else None


def _named_label(prediction: str, labels: set[str]) -> str | None:
    text = normalise(prediction)
    places = ((_position(label, text), label) for label in labels)
    found = [(at, -len(label), label) for at, label in places if at is not None]
    return min(found)[2] if found else None


def _letter_of(option: str) -> str | None:
    match = _LETTER_OPTION.fullmatch(option.strip())
    return (match[1] or match[2]).upper() if match else None


def _named_letter(prediction: str, *, last: str) -> str | None:
    if alone := _letter_of(prediction):
        return alone
    named = (match[0].upper() for match in _LETTER_NAMED.finditer(prediction))
    return next((letter for letter in named if letter <= last), None)


@functools.cache
def _rouge_scorer() -> Any:
    # rouge_score imports nltk, which takes longer than the rest of this package.
    from nltk.stem.porter import PorterStemmer
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Tokenizer(PorterStemmer().stem))


class _Tokenizer:
    """rouge-score's own, but for letters outside ASCII."""

    def __init__(self, stem: Callable[[str], str]) -> None:
        self._stem = stem

    def tokenize(self, text: str) -> list[str]:
        words = _WORD.findall(text.lower())
        return [self._stem(word) if len(word) > 3 else word for word in words]


Box = tuple[float, float, float, float]

_LETTER = re.compile(r"\(?([A-Z])(?:\)|\.|\Z)(?:\s.*)?", re.DOTALL)
_ANSWER_IS = re.compile(r"[Tt]he answer is \(?([A-Z])\b")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)")

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
# The reference writes (?!<=\d)\.(?!\d), a typing error for a look-behind: this is what it does.
_PERIOD = re.compile(r"\.(?!\d)")
_ARTICLES = frozenset({"a", "an", "the"})
_COUNTED = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {word: str(i) for i, word in enumerate(_COUNTED.split())}
_CONTRACTED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've "
    "hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll let's ma'am "
    "mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't shan't "
    "she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd "
    "someone'd've someone'll someone's something'd something'd've something'll that's there'd "
    "there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've "
    "we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've "
    "who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll "
    "y'all'd've you'd you'd've you'll you're you've"
)


def option_letter(prediction: str, answers: Sequence[str], *, options: Sequence[str] = ()) -> float:
    """1 if the prediction names the right option's letter, else 0.

    It names one as ``B``, ``B.``, ``(B)``, ``B. a cat``, or by one single "The answer is B".
    Options that are no letters are compared as they are.

    Source: ScienceQA's evaluation as LLaVA runs it. ``choice`` reads free text more generously.
    """
    return float(_letter(prediction) in {_letter(answer) for answer in answers})


def vqa_accuracy(prediction: str, answers: Sequence[str], *, options: Sequence[str] = ()) -> float:
    """Agreement with ten people: the mean over the answers of min(1, n / 3).

    n counts the other nine that equal the prediction, all texts after ``normalise_vqa``. Repeated
    answers are votes. A single answer counts like ten equal ones.

    Source: the VQA evaluation (Antol et al. 2015, arXiv:1505.00468), also TextVQA's.
    """
    text = normalise_vqa(prediction)
    hits = [normalise_vqa(answer) == text for answer in answers]
    if len(hits) == 1:
        return float(hits[0])
    return sum(min(1.0, (sum(hits) - hit) / 3) for hit in hits) / len(hits)


def contains_either(
    prediction: str, answers: Sequence[str], *, options: Sequence[str] = ()
) -> float:
    """1 if an answer stands in the prediction or the prediction in an answer, without case.

    An empty prediction scores 0.

    Source: ImageNet in the CoIN benchmark (Chen et al. 2024, arXiv:2403.08350).
    """
    text = _plain(prediction)
    known = [_plain(answer) for answer in answers]
    return float(bool(text) and any(text in answer or answer in text for answer in known))


def ignore_case(prediction: str, answers: Sequence[str], *, options: Sequence[str] = ()) -> float:
    """1 if the prediction equals an answer but for case and surrounding white space, else 0.

    Source: VizWiz and OCR-VQA in the CoIN benchmark (arXiv:2403.08350).
    """
    return float(_plain(prediction) in {_plain(answer) for answer in answers})


def gqa_match(prediction: str, answers: Sequence[str], *, options: Sequence[str] = ()) -> float:
    """1 if the prediction without its final period equals an answer but for case, else 0.

    Source: GQA (Hudson and Manning 2019, arXiv:1902.09506), as LLaVA converts answers for it.
    """
    return float(_plain(prediction).rstrip(".") in {_plain(answer) for answer in answers})


def box_iou(prediction: str, answers: Sequence[str], *, options: Sequence[str] = ()) -> float:
    """1 if the predicted box overlaps an answer's with intersection over union above 0.5, else 0.

    A box is the first four numbers of a text: x1, y1, x2, y2, any two opposite corners, both
    boxes in the same unit. CoIN divides all by the image's longer side, so that the square to
    which LLaVA pads an image is [0, 1] x [0, 1].

    Source: RefCOCO's accuracy at IoU 0.5 (Yu et al. 2016, arXiv:1608.00272).
    """
    found = _box(prediction)
    boxes = [box for answer in answers if (box := _box(answer)) is not None]
    return float(found is not None and any(_iou(found, box) > 0.5 for box in boxes))


def normalise_vqa(text: str) -> str:
    """Return ``text`` as the VQA evaluation compares it.

    Lower case; punctuation removed where it touches a space or a comma stands between digits,
    else replaced by a space; periods removed but before digits; numbers up to ten as digits;
    articles dropped; apostrophes of contractions restored.

    Source: the VQA evaluation's definition. Differs: its table also turns ``somebody'd`` into
    ``somebodyd`` and spells ``'ow's'at``; these two are left as they are.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    has_digit_comma = _DIGIT_COMMA.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        glued = f"{mark} " in text or f" {mark}" in text or has_digit_comma
        cleaned = cleaned.replace(mark, "" if glued else " ")
    words = (_NUMBERS.get(word, word) for word in _PERIOD.sub("", cleaned).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _misspellings(word: str) -> Iterator[str]:
    """Yield the word with some or all of its apostrophes missing."""
    pieces = word.split("'")
    for marks in product(("", "'"), repeat=len(pieces) - 1):
        if "" in marks:
            yield "".join(map("".join, zip(pieces, (*marks, ""), strict=True)))


_CONTRACTIONS = {wrong: right for right in _CONTRACTED.split() for wrong in _misspellings(right)}


def _plain(text: str) -> str:
    return text.strip().casefold()


def _letter(text: str) -> str:
    if alone := _LETTER.fullmatch(text.strip()):
        return alone[1]
    named = _ANSWER_IS.findall(text)
    return named[0] if len(named) == 1 else text.strip()


def _box(text: str) -> Box | None:
    numbers = [float(number) for number in _NUMBER.findall(text)[:4]]
    if len(numbers) < 4:
        return None
    x1, y1, x2, y2 = numbers
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _iou(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0.0) * max(height, 0.0)
    union = _area(a) + _area(b) - overlap
    return overlap / union if union else 0.0


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
