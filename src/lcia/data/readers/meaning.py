"""Fields that change what a model must say: refused where a reader does not use them."""

from collections.abc import Iterable, Mapping
from typing import Any

from lcia.data.readers.base import RecordError, found, says_nothing

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
