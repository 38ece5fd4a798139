"""Infer a task's instruction: the lines or sentences that recur over its prompts.

A template is a text in which ``…`` stands for a slot, the part that changes from prompt to prompt.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher, get_close_matches

from lcia.grouping.index import STOP_WORDS

SLOT = "…"
_SENTENCE = re.compile(r"\S[^\n]*?(?:[.!?](?=\s)|$)", re.MULTILINE)
_NUMBERING = re.compile(r"^(?:[-*•#>]+\s+|\(?(?:\d{1,3}|[A-Za-z]|[ivx]{1,4})[.)]\s+)+")
_WORD = re.compile(rf"\w+|{SLOT}")
# A template in at least this share of the prompts is the task's instruction, and rarer ones are
# its input repeating itself; without such a one every template above the lower share counts.
_CORE_SHARE = 0.8
_LEAST_SHARE = 0.05
# Share of a template's fixed words that a sentence has to hold, and of its own that have to be
# fixed words where the template has no slot.
_ALIKE = 0.75
_LONGEST_SENTENCE = 2_000
# This many words in one place of otherwise equal sentences make the place a slot.
_FILLERS = 6
_LONGEST_OPENED = 40

Shape = tuple[str, ...]
Surfaces = defaultdict[Shape, Counter[str]]


def infer_templates(prompts: Sequence[str]) -> list[str]:
    """Return the templates that recur over ``prompts``, the most frequent first.

    Words in fewer than 5% of the prompts (and in fewer than two) are slots. A template is
    what sentences look like with slots left out, if it recurs and most of it is fixed words.
    """
    least = recurring_count(len(prompts))
    sentences = [list(dict.fromkeys(_sentences(prompt))) for prompt in prompts]
    holding: Counter[str] = Counter()
    for prompt in sentences:
        holding.update({word for sentence in prompt for word in _words(sentence)})
    fixed = {word for word, count in holding.items() if count >= least}
    surfaces: Surfaces = defaultdict(Counter)
    for prompt in sentences:
        seen = {_shape(sentence, fixed): sentence for sentence in reversed(prompt)}
        for shape, sentence in seen.items():
            surfaces[shape][sentence] += 1
    surfaces = _with_slots(surfaces)
    counts = {
        shape: sum(surface.values()) for shape, surface in surfaces.items() if _is_telling(shape)
    }
    for share in (_CORE_SHARE * len(prompts), least):
        kept = [shape for shape, count in counts.items() if count >= max(2, share)]
        if kept:
            break
    kept.sort(key=lambda shape: (-counts[shape], shape))
    return [_render(shape, surfaces[shape]) for shape in kept]


def recurring_count(prompts: int) -> float:
    """Return in how many of so many prompts something has to stand to recur."""
    return max(2, _LEAST_SHARE * prompts)


def recurring_words(prompts: Sequence[str]) -> list[str]:
    """Return the words that recur over prompts, in the order in which they mostly come first."""
    holding: Counter[str] = Counter()
    places: Counter[str] = Counter()
    for prompt in prompts:
        for place, word in enumerate(dict.fromkeys(_words(prompt))):
            holding[word] += 1
            places[word] += place
    least = recurring_count(len(prompts))
    kept = [word for word, count in holding.items() if count >= least and word != "0"]
    return sorted(kept, key=lambda word: (places[word] / holding[word], word))


def find_templates(prompt: str, templates: Sequence[str]) -> tuple[list[str], str]:
    """Find the templates in a prompt.

    A sentence is taken for the template it equals, else for the one it resembles most: typos and
    a changed word are forgiven.

    Returns:
        The templates found, in the prompt's order, each once; and the prompt without the
        sentences they were found in.
    """
    shapes = {tuple(_words(template)): template for template in templates}
    found: dict[str, None] = {}
    rest, end = [], 0
    for match in _SENTENCE.finditer(prompt):
        template = _nearest_template(_words(_unnumbered(match.group())), shapes)
        if template is not None:
            found[template] = None
            rest.append(prompt[end : match.start()])
            end = match.end()
    return list(found), "".join([*rest, prompt[end:]]).strip()


def _nearest_template(words: list[str], shapes: dict[Shape, str]) -> str | None:
    if tuple(words) in shapes:
        return shapes[tuple(words)]
    if not words or len(words) > _LONGEST_SENTENCE:
        return None
    scored = [(_likeness(words, shape), template) for shape, template in shapes.items()]
    likeness, template = max(scored, key=lambda pair: pair[0], default=(0.0, ""))
    return template if likeness >= _ALIKE else None


def _likeness(words: list[str], shape: Shape) -> float:
    """Return the share of words that agree, in order, in [0, 1]; 0 where far too few can."""
    fixed = [word for word in shape if word != SLOT]
    known = set(fixed)
    if sum(word in known for word in words) < len(fixed) / 2:
        return 0.0
    mended = [w if w in known else _mended(w, fixed) for w in words]
    matcher = SequenceMatcher(None, mended, fixed, autojunk=False)
    agreeing = sum(block.size for block in matcher.get_matching_blocks())
    expected = len(fixed) if SLOT in shape else max(len(fixed), len(words))
    return agreeing / max(1, expected)


def _mended(word: str, fixed: Sequence[str]) -> str:
    return next(iter(get_close_matches(word, fixed, n=1, cutoff=0.8)), word)


def _sentences(prompt: str) -> Iterable[str]:
    return (_unnumbered(match.group()) for match in _SENTENCE.finditer(prompt))


def _unnumbered(sentence: str) -> str:
    return _NUMBERING.sub("", sentence).strip()


def _words(sentence: str) -> list[str]:
    return _WORD.findall(re.sub(r"\d+", "0", sentence.casefold()))


def _shape(sentence: str, fixed: set[str]) -> Shape:
    """Return the words of a sentence, each run of words that are not fixed as one slot."""
    shape: list[str] = []
    for word in _words(sentence):
        kept = word if word in fixed else SLOT
        if kept != SLOT or shape[-1:] != [SLOT]:
            shape.append(kept)
    return tuple(shape)


def _with_slots(surfaces: Surfaces) -> Surfaces:
    """Join the shapes that differ in one place only, where that place has many words."""
    fillers: defaultdict[Shape, set[str]] = defaultdict(set)
    for shape in surfaces:
        for opened in _opened(shape):
            fillers[opened].update(word for word in shape if word not in opened)
    joined: Surfaces = defaultdict(Counter)
    for shape, surface in surfaces.items():
        best = max(_opened(shape), key=lambda opened: len(fillers[opened]), default=shape)
        many = len(fillers[best]) >= _FILLERS and _is_telling(best)
        joined[best if many else shape].update(surface)
    return joined


def _opened(shape: Shape) -> list[Shape]:
    """Return the shape with one word after the other as a slot."""
    if len(shape) > _LONGEST_OPENED:
        return []
    return [
        (*shape[:place], SLOT, *shape[place + 1 :])
        for place, word in enumerate(shape)
        if word != SLOT
    ]


def _is_telling(shape: Shape) -> bool:
    """Whether most of a shape is fixed words, not all numbers, nor stop words around slots."""
    fixed = [word for word in shape if word != SLOT]
    if len(fixed) < 2 or len(fixed) < 0.6 * len(shape) or set(fixed) == {"0"}:
        return False
    return SLOT not in shape or any(word not in STOP_WORDS for word in fixed)


def _render(shape: Shape, surfaces: Counter[str]) -> str:
    """Return the usual wording of a template without slots, else its words with slots."""
    if SLOT in shape:
        return " ".join(shape)
    return min(surfaces, key=lambda surface: (-surfaces[surface], surface))
