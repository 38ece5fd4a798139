"""What the engine may use, and what it says when that is used up."""

from dataclasses import dataclass

from lcia.errors import LciaError


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """What the engine may use.

    Attributes:
        max_batch: answers generated at once.
        max_waiting: requests that wait for a place; more are refused.
        max_context: tokens of prompt and answer together.
        max_adapters: adapters kept in memory; those in use stay, whatever this says.
    """

    max_batch: int = 32
    max_waiting: int = 128
    max_context: int = 2048
    max_adapters: int = 64


class QueueFullError(LciaError, RuntimeError):
    """No place is free, and as many requests wait as may.

    Attributes:
        retry_after_s: when to try again, in seconds, from how long answers took of late.
    """

    def __init__(self, waiting: int, retry_after_s: int) -> None:
        super().__init__(f"{waiting} requests are waiting; try again in {retry_after_s} s.")
        self.retry_after_s = retry_after_s


class GenerationTimeoutError(LciaError, TimeoutError):
    """An answer took longer than its prompt allows."""


class GenerationFailedError(LciaError, RuntimeError):
    """The model failed; the log says how."""


class ShuttingDownError(LciaError, RuntimeError):
    """The engine was stopped before the answer was finished."""
