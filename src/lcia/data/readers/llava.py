"""LLaVA's conversations about images, and the questions of its test files."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from lcia.data.readers.base import Reader, Record, RecordError, found
from lcia.data.readers.fields import (
    ends_with_user,
    image_path,
    is_learned,
    speaker,
    text,
    turns,
    with_system,
)
from lcia.data.sample import Image, Message, Sample

MARK = "<image>"
_ANSWERS = frozenset({"answer", "answer_bbox"})
SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant"}


class LlavaReader(Reader):
    """LLaVA conversations, {"image", "conversations": [{"from", "value"}, ...]}.

    Every answer of a conversation is trained on, each with the turns before it, unless ``turns``
    is set to ``last``. ``image`` is a
    path or a list of paths, one for each ``<image>`` in the text; a sample may have none.
    Speakers of other names are mapped by ``roles``. An answer with "weight": 0 is not learned;
    "system" may stand beside the conversation. Ids may come again, as they do in LLaVA's own files.

    Source: LLaVA (Liu et al. 2023, arXiv:2304.08485), and CoIN in its form.
    """

    expected: ClassVar[str] = '{"image": ..., "conversations": [{"from": "human", "value": ...}]}'
    fields: ClassVar[frozenset[str]] = frozenset({"image", "conversations", "system"})
    repeats_ids: ClassVar[bool] = True
    turns: str = "all"

    def recognises(self, record: Mapping[str, Any]) -> bool:
        """Whether the record has ``conversations``."""
        return "conversations" in record

    def expand(self, record: Record) -> Iterator[Record]:
        """Yield one record for each answer: the conversation up to it."""
        value = record.value
        said = value.get("conversations") if isinstance(value, Mapping) else None
        if not isinstance(said, list) or not said:
            raise RecordError(f"conversations is {found(said)}; expected a list of from and value.")
        roles = {**SPEAKERS, **self.roles}
        answers = [i for i, turn in enumerate(said) if _speaker(turn, roles) == "assistant"]
        learned = [i for i in answers if is_learned(said[i], f"conversations[{i}]")]
        if answers and not learned:
            raise RecordError("conversations: no answer is to be learned. Leave the record out.")
        if self.turns == "last":
            answers = learned = learned[-1:]
        for i in learned or [len(said) - 1]:
            own = {"id": f"{record.id}-{i // 2 + 1}"} if len(answers) > 1 else {}
            cut = {**value, "conversations": said[: i + 1], **own}
            yield Record(where=record.where, number=record.number, value=cut)

    def sample(self, record: Record) -> Sample:
        """Return the sample of one answer."""
        *said, answer = with_system(
            _messages(record.value["conversations"], roles=self.roles), record.value
        )
        if answer.role != "assistant":
            raise RecordError("conversations: has no turn from 'gpt'; expected an answer.")
        return Sample(
            id=record.id,
            messages=with_images(
                ends_with_user(tuple(said), "conversations"), record.value.get("image")
            ),
            answers=(answer.content,),
            conversation=record.where,
        )


class LlavaTestReader(Reader):
    """LLaVA test questions, {"question_id", "image", "text", "answer"}.

    CoIN's grounding has ``answer_bbox`` instead. A list of answers is kept with its repetitions:
    for ``vqa_accuracy`` they are votes.
    """

    expected: ClassVar[str] = '{"question_id": ..., "image": ..., "text": ..., "answer": ...}'
    fields: ClassVar[frozenset[str]] = frozenset(
        {"question_id", "image", "text", "answer", "answer_bbox"}
    )
    repeats_ids: ClassVar[bool] = True

    def recognises(self, record: Mapping[str, Any]) -> bool:
        """Whether the record has ``question_id``, ``text`` and an answer."""
        return {"question_id", "text"} <= set(record) and bool(_ANSWERS & set(record))

    def sample(self, record: Record) -> Sample:
        """Return the sample of one question; its id is ``question_id``."""
        value = record.value
        own = Record(
            where=record.where, number=record.number, value={"id": value.get("question_id")}
        )
        asked = Message(role="user", content=text(value.get("text"), "text"))
        answers = value.get("answer_bbox", value.get("answer"))
        answers = answers if isinstance(answers, list) and answers else [answers]
        return Sample(
            id=own.id,
            messages=with_images((asked,), value.get("image")),
            answers=tuple(text(answer, f"answer[{i}]") for i, answer in enumerate(answers)),
        )


def with_images(messages: tuple[Message, ...], value: Any) -> tuple[Message, ...]:
    """Put images where the text says ``<image>``, a lone one without a mark before the text.

    Raises:
        RecordError: another number of images than marks.
    """
    given = value if isinstance(value, list) else [] if value in (None, "") else [value]
    paths = [image_path(path, "image") for path in given]
    marks = sum(message.content.count(MARK) for message in messages)
    if not marks and len(paths) == 1:
        first, *others = messages
        return (_marked(first, f"{MARK}\n{first.content}", iter(paths)), *others)
    if marks != len(paths):
        raise RecordError(f"the text has {marks} {MARK} for {len(paths)} images; expected equal.")
    left = iter(paths)
    return tuple(_marked(message, message.content, left) for message in messages)


def _marked(message: Message, content: str, paths: Iterator[str]) -> Message:
    """Replace the marks by images; a line break beside a mark belongs to it."""
    words, *rest = content.split(MARK)
    if rest == [""]:
        words = words.removesuffix("\n")
    images = []
    for piece in rest:
        images.append(Image(path=next(paths), at=len(words)))
        words += piece.removeprefix("\n")
    return Message(role=message.role, content=text(words, "text"), images=tuple(images))


def _speaker(turn: Any, roles: Mapping[str, str]) -> str | None:
    """Return who says a turn: ``from`` and ``value``, or ``role`` and ``content``, name it."""
    return speaker(turn, roles, key="role" if _is_chat(turn) else "from")


def _is_chat(turn: Any) -> bool:
    return isinstance(turn, Mapping) and "from" not in turn and "role" in turn


def _messages(said: list[Any], *, roles: Mapping[str, str]) -> tuple[Message, ...]:
    renamed = [
        {
            **{key: value for key, value in turn.items() if key not in {"from", "value"}},
            "role": turn.get("from"),
            "content": turn.get("value"),
        }
        if isinstance(turn, Mapping) and not _is_chat(turn)
        else turn
        for turn in said
    ]
    return turns(renamed, "conversations", roles={**SPEAKERS, **roles})
