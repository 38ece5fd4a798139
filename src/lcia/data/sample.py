"""The one in-memory form of a training or test instance."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image in a turn.

    Attributes:
        path: the file, absolute once a task is loaded.
        sha256: of the file's bytes, hexadecimal; empty until it was checked.
        at: how many characters of the turn's text stand before it.
    """

    path: str
    sha256: str = ""
    at: int = 0


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: ``system``, ``user`` or ``assistant``.
        content: the text of the turn.
        images: its images, in order; most models want them before the text.
    """

    role: str
    content: str
    images: tuple[Image, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A prompt with its acceptable answers.

    Attributes:
        id: unique within its file; line or record number where the data give none.
        messages: the conversation up to the answer; the last turn is the user's.
        answers: every acceptable answer, at least one; the first is the one trained on.
        instruction: the part of the prompt that says what to do, where the data name it.
        conversation: what samples of one conversation share, where it holds several; they are
            trained on or held out together.
    """

    id: str
    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    instruction: str | None = None
    conversation: str | None = field(default=None, compare=False)

    @property
    def prompt(self) -> str:
        """The text of the last user turn: what a user would type."""
        return self.messages[-1].content

    @property
    def images(self) -> tuple[Image, ...]:
        """The images of all turns, in order."""
        return tuple(image for message in self.messages for image in message.images)
