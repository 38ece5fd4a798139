"""Scorers: how much of an answer is right, between 0 and 1.

All have one signature, ``scorer(prediction, answers, *, options=())``; several acceptable answers
count by the best of them. Texts are compared after ``normalise``, except by ``rouge_l``, which
tokenises as ROUGE does.
"""

import functools
import re
import unicodedata
from collections.abc import Callable, Sequence
from itertools import chain
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
