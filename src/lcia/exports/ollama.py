"""An Ollama Modelfile: the chat template in Ollama's own language, proven on conversations."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lcia.errors import StoreError

if TYPE_CHECKING:
    from lcia.exports.gguf import Vocabulary

ROLES = ("system", "user", "assistant")
_TEXTS = ("s-y-s-t", "q-u-e-s", "a-n-s", "m-o-r-e", "t-h-e-n", "l-a-s-t")

Turns = Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """A chat template that writes one turn after another.

    Attributes:
        around: role to what stands before and behind its texts.
        cue: what an answer follows.
        head: what begins a conversation without a system turn.
    """

    around: dict[str, tuple[str, str]]
    cue: str
    head: str

    def render(self, turns: Turns) -> str:
        """Return a conversation up to where the answer starts."""
        head = self.head if turns[0][0] != "system" else ""
        said = (f"{self.around[role][0]}{text}{self.around[role][1]}" for role, text in turns)
        return head + "".join(said) + self.cue


def modelfile(model: str, tokens: "Vocabulary") -> str:
    """Return the Modelfile of a GGUF file.

    Answers are greedy and without a penalty for repetition, as lcia gives them.

    Args:
        model: the file, beside the Modelfile.
        tokens: of the model.

    Raises:
        StoreError: Ollama's language for templates cannot say what the chat template does.
    """
    pieces = find_pieces(tokens)
    lines = [f"FROM ./{model}", f"TEMPLATE {_quoted(_template(pieces))}"]
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in tokens.stops]
    lines += ["PARAMETER temperature 0", "PARAMETER repeat_penalty 1"]
    return "\n".join(lines) + "\n"


def find_pieces(tokens: "Vocabulary") -> Pieces:
    """Return a chat template as pieces.

    Raises:
        StoreError: it does more than write one turn after another, or knows no system turn.
    """
    from jinja2 import TemplateError

    try:
        pieces = _guess(tokens)
        for turns in _conversations():
            if pieces.render(turns) != _rendered(tokens, turns, cue=True):
                raise ValueError("the pieces do not make up the whole")
    except (TemplateError, ValueError) as error:
        raise StoreError(
            "model: its chat template does more than write a system turn, questions and answers "
            "one after another, and Ollama's cannot say that. Export it with --format gguf: "
            f"llama.cpp reads the template as it is. ({error})"
        ) from error
    return pieces


def _guess(tokens: "Vocabulary") -> Pieces:
    """Cut what the template writes around texts into what belongs to which turn."""
    system, question, answer, further, *_ = _TEXTS
    alone = _rendered(tokens, [("user", question)])
    head, after_user = _parted(alone, question)
    cue = _rendered(tokens, [("user", question)], cue=True).removeprefix(alone)
    answered = _rendered(tokens, [("user", question), ("assistant", answer)])
    before_answer, after_answer = _parted(answered, answer)
    asked = [("user", question), ("assistant", answer), ("user", further)]
    before_user = _parted(_rendered(tokens, asked), further)[0]
    before_user = _without(before_user, _parted(before_user, answer)[0] + answer + after_answer)
    told = _rendered(tokens, [("system", system), ("user", question)])
    before_system, rest = _parted(told, system)
    after_system = _parted(rest, question)[0]
    if not after_system.endswith(before_user) or not head.endswith(before_user):
        raise ValueError("a question begins differently behind a system turn")
    after_system = after_system[: len(after_system) - len(before_user)]
    return Pieces(
        around={
            "system": (before_system, after_system),
            "user": (before_user, after_user),
            "assistant": (_without(before_answer, head + question + after_user), after_answer),
        },
        cue=cue,
        head=head[: len(head) - len(before_user)],
    )


def _conversations() -> list[list[tuple[str, str]]]:
    """Return conversations that end with a question: short and long, told something or not."""
    found = []
    for questions, told in itertools.product((1, 2, 3), (False, True)):
        roles = ["system"] * told + ["user", "assistant"] * questions
        texts = (text if i % 2 else f"{text}\n\nand {text}" for i, text in enumerate(_TEXTS * 2))
        found.append(list(zip(roles[:-1], texts, strict=False)))
    return found


def _rendered(tokens: "Vocabulary", turns: Turns, *, cue: bool = False) -> str:
    """Return what the template writes, without a start token that Ollama adds."""
    text = tokens.rendered(list(turns), cue=cue)
    return text.removeprefix(tokens.start) if tokens.adds_start else text


def _parted(text: str, at: str) -> tuple[str, str]:
    before, found, behind = text.partition(at)
    if not found:
        raise ValueError("it leaves out a turn")
    return before, behind


def _without(text: str, beginning: str) -> str:
    if not text.startswith(beginning):
        raise ValueError("it writes a turn differently once another follows")
    return text[len(beginning) :]


def _template(pieces: Pieces) -> str:
    """Return the template in Go's language; every character outside braces is meant."""
    branches = [
        f'{{{{ {"else " * bool(i)}if eq .Role "{role}" }}}}{_literal(before)}{{{{ .Content }}}}'
        f"{_literal(behind)}"
        for i, role in enumerate(ROLES)
        for before, behind in [pieces.around[role]]
    ]
    turns = "".join(branches) + "{{ end }}"
    told = '{{ if ne (index .Messages 0).Role "system" }}' + _literal(pieces.head) + "{{ end }}"
    return told + "{{ range .Messages }}" + turns + "{{ end }}" + _literal(pieces.cue)


def _literal(text: str) -> str:
    """Return a text as Go's templates write it: two braces in a row would begin an action."""
    return text.replace("{{", '{{ "{{" }}')


def _quoted(text: str) -> str:
    dropped = [c for c in text if not (c.isprintable() or c in "\n\t ")]  # by Ollama's parser
    if '"""' in text or text.endswith('"') or dropped:
        raise StoreError(f"model: a Modelfile cannot hold {text!r}. Export it with --format gguf.")
    return f'"""{text}"""'
