"""Checked access to the fields of a record; every message says what was found and expected.

Fields that change what a model must say are refused where a reader does not use them.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from lcia.data.readers.base import RecordError, found, says_nothing
from lcia.data.sample import Image, Message

REFUSED: Mapping[str, str] = {
    "audio": "lcia reads no sound. Leave the record out.",
    "audios": "lcia reads no sound. Leave the record out.",
    "chat_template_kwargs": "one record cannot choose its own template. Remove the field.",
    "context": "this format has no place for it. Put it into the prompt.",
    "documents": "this format has no place for them. Put them into the prompt.",
    "function_call": "lcia does not train the use of tools. Leave the record out.",
    "functions": "lcia does not train the use of tools. Leave the record out.",
    "history": "this format has no place for it. Write the earlier turns as messages.",
    "image": "this format has no place for it. Write images as parts of a turn's content.",
    "images": "this format has no place for them. Write images as parts of a turn's content.",
    "input": "this format has no place for it. Put it into the prompt.",
    "negative": "lcia learns from wanted answers alone. Remove the field.",
    "rejected": "lcia learns from wanted answers alone. Remove the field.",
    "suffix": "this format has no place for it. Put it into the prompt.",
    "system": "this format has no place for it. Write it as the first of the messages.",
    "tool_calls": "lcia does not train the use of tools. Leave the record out.",
    "tools": "lcia does not train the use of tools. Leave the record out.",
    "video": "lcia reads no films. Leave the record out.",
    "videos": "lcia reads no films. Leave the record out.",
}
"""Field to why it cannot be read past, and what to do."""

SWITCHES = frozenset({"weight", "train", "loss", "label"})
"""Fields that say whether something is learned: 1 and true change nothing, 0 and false do."""

NEUTRAL = (
    "id",
    "idx",
    "index",
    "name",
    "source",
    "category",
    "dataset",
    "metadata",
    "meta",
    "split",
)
"""Fields that name or file a record; to read past them needs no word."""


def refuse(record: Mapping[str, Any], *, used: Iterable[str], where: str = "") -> None:
    """Refuse a record, or a turn of one, with a field that may not be read past.

    Args:
        record: the object.
        used: the fields the reader takes.
        where: what precedes a field's name in a message, such as ``messages[1].``.

    Raises:
        RecordError: such a field says something.
    """
    for key in record.keys() - set(used):
        value = record[key]
        if key in REFUSED and not says_nothing(value):
            raise RecordError(f"{where}{key} is {found(value)}; {REFUSED[key]}")
        if key in SWITCHES and is_off(value, f"{where}{key}"):
            raise RecordError(
                f"{where}{key} is {found(value)}, so this is not to be learned. "
                "Leave the record out."
            )


def is_off(value: Any, name: str) -> bool:
    """Whether a switch says that something is not to be learned.

    A ``label`` may also be a class of the data's own: only ``false`` is read there.

    Raises:
        RecordError: a weight between 0 and 1 or above.
    """
    if isinstance(value, str):
        value = _cell(value, number=not name.endswith("label"))
    if isinstance(value, bool):
        return not value
    if name.endswith("label") or not isinstance(value, int | float):
        return False
    if value not in (0, 1):
        raise RecordError(f"{name} is {found(value)}; expected 0 or 1: lcia weighs no samples.")
    return value == 0


def _cell(value: str, *, number: bool) -> Any:
    """Return what a cell of a table means, where it is a truth value or, if asked, a number."""
    word = value.strip().lower()
    if word in ("true", "false"):
        return word == "true"
    try:
        return float(word) if number else value
    except ValueError:
        return value


def unread(record: Mapping[str, Any], *, used: Iterable[str]) -> list[str]:
    """Return the fields of a record that say something and that nobody reads."""
    known = {*used, *NEUTRAL}
    said = (key for key in record if key not in known and not says_nothing(record[key]))
    return [key for key in said if key not in SWITCHES or not _is_on(record[key])]


def _is_on(value: Any) -> bool:
    """Whether a switch says that something is learned, which needs no word; no class does."""
    if isinstance(value, str):
        value = _cell(value, number=True)
    return isinstance(value, bool | int | float) and value == 1


ROLES = ("system", "user", "assistant")
TOOL_ROLES = ("tool", "function", "function_call", "observation", "ipython")
TURN = ("role", "content", "weight", "train", "loss")
"""Fields of a turn; the last three say whether an answer is learned, and nothing of other turns."""
LIKELY_ROLE = {
    "human": "user",
    "prompter": "user",
    "customer": "user",
    "bot": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "agent": "assistant",
    "developer": "system",
}


def text(value: Any, name: str) -> str:
    """Return ``value`` if it is a text that says something.

    Raises:
        RecordError: not a text, blank, or not encodable as UTF-8.
    """
    if not isinstance(value, str):
        raise RecordError(f"{name} is {found(value)}; expected a text.")
    if not value.strip():
        raise RecordError(f"{name} is empty; expected a text.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RecordError(
            f"{name} has half a surrogate pair at character {error.start + 1}; expected whole "
            "characters."
        ) from None
    return value


def optional_text(value: Any, name: str) -> str | None:
    """Return None for an absent field, else what ``text`` returns."""
    return None if value is None else text(value, name)


def texts(value: Any, name: str) -> tuple[str, ...]:
    """Return one text or a list of texts as a tuple, in order; repeated ones are votes and stay.

    Raises:
        RecordError: an empty list, or an entry that is not a text that says something.
    """
    if not isinstance(value, list):
        return (text(value, name),)
    if not value:
        raise RecordError(f"{name} is an empty list; expected at least one text.")
    return tuple(text(item, f"{name}[{i}]") for i, item in enumerate(value))


def with_answers(trained: tuple[str, ...], answers: tuple[str, ...]) -> tuple[str, ...]:
    """Return the answer that is trained on, first, and the acceptable ones, as often as given."""
    further = list(answers)
    for answer in trained:
        if answer in further:
            further.remove(answer)
    return (*trained, *further)


def earlier(record: Mapping[str, Any]) -> tuple[Message, ...]:
    """Return the turns that ``system`` and ``history`` of a record put before its prompt.

    Raises:
        RecordError: a system text beside a prompt that has its own, a history that is no list of
            pairs, or one of the two beside a list of messages.
    """
    turns_before: list[Message] = []
    if not says_nothing(system := record.get("system")):
        turns_before.append(Message(role="system", content=text(system, "system")))
    history = record.get("history")
    if not says_nothing(history):
        pairs = history if isinstance(history, list) else [history]
        for i, pair in enumerate(pairs):
            if not isinstance(pair, list) or len(pair) != 2:
                raise RecordError(
                    f"history[{i}] is {found(pair)}; expected a pair of prompt and answer."
                )
            for role, said in zip(("user", "assistant"), pair, strict=True):
                turns_before.append(Message(role=role, content=text(said, f"history[{i}]")))
    if turns_before and isinstance(record.get("prompt"), list):
        raise RecordError("prompt is a list of messages; expected system and history among them.")
    return tuple(turns_before)


def speaker(turn: Any, roles: Mapping[str, str], *, key: str = "role") -> str | None:
    """Return the role of a turn after renaming; None if it names none."""
    role = turn.get(key) if isinstance(turn, Mapping) else None
    return roles.get(role, role) if isinstance(role, str) else None


def with_system(messages: tuple[Message, ...], record: Mapping[str, Any]) -> tuple[Message, ...]:
    """Return the turns of a record, its ``system`` text the first of them.

    Raises:
        RecordError: there is a system turn, too, and it says something else.
    """
    if says_nothing(record.get("system")):
        return messages
    first = Message(role="system", content=text(record["system"], "system"))
    if messages[0].role != "system":
        return (first, *messages)
    if messages[0].content != first.content:
        raise RecordError("system differs from the first turn's; expected one of the two.")
    return messages


def turns(value: Any, name: str, *, roles: Mapping[str, str]) -> tuple[Message, ...]:
    """Return a list of ``{"role", "content"}`` objects as messages.

    Raises:
        RecordError: not such a list, an unknown role, or a system turn after the first.
    """
    if not isinstance(value, list) or not value:
        raise RecordError(f"{name} is {found(value)}; expected a list of role and content.")
    messages = tuple(_turn(item, f"{name}[{i}]", roles=roles) for i, item in enumerate(value))
    for i, message in enumerate(messages[1:], start=1):
        if message.role == "system":
            raise RecordError(f"{name}[{i}].role is 'system'; expected it as the first turn only.")
    return messages


def _turn(value: Any, name: str, *, roles: Mapping[str, str]) -> Message:
    if not isinstance(value, Mapping):
        raise RecordError(f"{name} is {found(value)}; expected an object of role and content.")
    role = speaker(value, roles)
    refuse(value, used=TURN, where=f"{name}.")
    if role is None:
        given = found(value.get("role"))
        raise RecordError(f"{name}.role is {given}; expected {ROLES_TEXT}.")
    if role in TOOL_ROLES:
        raise RecordError(
            f"{name}.role is {found(role)}; lcia does not train the use of tools. Leave the record "
            "out."
        )
    if role not in ROLES:
        to = LIKELY_ROLE.get(role.lower(), "ROLE")
        raise RecordError(
            f"{name}.role is {found(role)}; expected {ROLES_TEXT}. Map it with --role {role}={to}."
        )
    content = value.get("content")
    if isinstance(content, list):
        words, images = _parts(content, f"{name}.content")
        return Message(role=role, content=words, images=images)
    return Message(role=role, content=text(content, f"{name}.content"))


def _parts(value: list[Any], name: str) -> tuple[str, tuple[Image, ...]]:
    """Return text and images of ``[{"type": "image", "image": path}, {"type": "text", ...}]``."""
    words, images = "", []
    for i, part in enumerate(value):
        where = f"{name}[{i}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            words += text(part.get("text"), f"{where}.text")
        elif kind == "image":
            path = image_path(part.get("image", part.get("path")), f"{where}.image")
            images.append(Image(path=path, at=len(words)))
        else:
            raise RecordError(f"{where}.type is {found(kind)}; expected 'text' or 'image'.")
    return text(words, name), tuple(images)


def image_path(value: Any, name: str) -> str:
    """Return ``value`` if it can be the path of an image.

    Raises:
        RecordError: not a text, or an address instead of a file.
    """
    path = text(value, name)
    if "://" in path or path.startswith("data:"):
        raise RecordError(f"{name} is {found(path)}; expected the path of a file. Download it.")
    return path


ROLES_TEXT = "'system', 'user' or 'assistant'"


def is_learned(turn: Any, name: str) -> bool:
    """Whether an answer's own ``weight``, ``train`` or ``loss`` lets it be learned.

    Raises:
        RecordError: a weight other than 0 and 1.
    """
    if not isinstance(turn, Mapping):
        return True
    return not any(is_off(turn[k], f"{name}.{k}") for k in TURN[2:] if turn.get(k) is not None)


def ends_with_user(messages: tuple[Message, ...], name: str) -> tuple[Message, ...]:
    """Return ``messages`` if the turn to answer is the user's.

    Raises:
        RecordError: no turn, or another's turn.
    """
    if not messages or messages[-1].role != "user":
        role = f"{messages[-1].role}'s" if messages else "missing"
        raise RecordError(f"{name}: the turn before the answer is {role}; expected the user's.")
    return messages
