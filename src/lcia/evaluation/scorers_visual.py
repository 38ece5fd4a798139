"""Scorers of the eight visual tasks of the paper, each from the definition of its benchmark.

They have the signature of ``lcia.evaluation.scorers.Scorer``. ScienceQA: ``option_letter``;
TextVQA and VQAv2: ``vqa_accuracy``; ImageNet: ``contains_either``; VizWiz and OCR-VQA:
``ignore_case``; GQA: ``gqa_match``; Grounding: ``box_iou``.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import product

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
