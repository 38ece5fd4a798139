"""The one in-memory form of a training or test instance."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: ``system``, ``user`` or ``assistant``.
        content: the text of the turn.
    """

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A prompt with its acceptable answers.

    Attributes:
        id: unique within its file; line or record number where the data give none.
        messages: the conversation up to the answer; the last turn is the user's.
        answers: every acceptable answer, at least one; the first is the one trained on.
        instruction: the part of the prompt that says what to do, where the data name it.
    """

    id: str
    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    instruction: str | None = None

    @property
    def prompt(self) -> str:
        """The text of the last user turn: what a user would type."""
        return self.messages[-1].content
