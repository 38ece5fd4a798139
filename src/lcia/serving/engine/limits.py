"""What the engine may use, and what it says when that is used up or fails."""

from dataclasses import dataclass, replace
from pathlib import Path

from lcia.errors import ConfigError, LciaError, StoreError
from lcia.memory import is_out_of_memory

LONGEST_CONTEXT = 2048
"""Tokens of prompt and answer together, where nobody says how many."""


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """What the engine may use.

    Attributes:
        max_batch: answers generated at once.
        max_waiting: requests that wait for a place; more are refused.
        max_context: tokens of prompt and answer together. None: ``LONGEST_CONTEXT``, or all that
            the model reads if that is less.
        max_adapters: adapters kept in memory; those in use stay, whatever this says.
        cache_bytes: keys and values of all answers together; requests wait for room. None: a
            quarter of the memory that is free when the engine is made.
        preparing: threads that prepare prompts; long ones leave at least one free for others.
        threads: processors that the model's thread uses; all other threads then use one each. None:
            as torch is set.
    """

    max_batch: int = 32
    max_waiting: int = 128
    max_context: int | None = None
    max_adapters: int = 64
    cache_bytes: int | None = None
    preparing: int = 2
    threads: int | None = None

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together."""
        return LONGEST_CONTEXT if self.max_context is None else self.max_context

    def fitted(self, positions: int | None) -> "EngineLimits":
        """Return the limits for a model that reads so many tokens; None: no matter how many.

        Raises:
            ConfigError: more were asked for than the model reads.
        """
        if positions is None or self.context <= positions:
            return self
        if self.max_context is not None:
            raise ConfigError(
                f"--max-context {self.max_context}: the model reads {positions} tokens. Ask for at "
                "most so many, or leave the option out."
            )
        return replace(self, max_context=positions)


class QueueFullError(LciaError, RuntimeError):
    """No place is free, and as many requests wait as may.

    Attributes:
        retry_after_s: when to try again, in seconds, from how long answers took of late.
    """

    def __init__(self, waiting: int, retry_after_s: int) -> None:
        super().__init__(f"{waiting} requests are waiting; try again in {retry_after_s} s.")
        self.retry_after_s = retry_after_s


class PromptError(ConfigError):
    """A prompt is nothing that the model can read."""


class PromptTooLongError(PromptError):
    """A prompt leaves no room for an answer.

    Clients know it by words: litellm by "maximum context length is", LangChain by "prompt is too
    long".

    Args:
        tokens: how many the prompt has.
        max_context: tokens of prompt and answer together.
    """

    def __init__(self, tokens: str, *, max_context: int) -> None:
        super().__init__(
            f"The prompt is too long: this model's maximum context length is {max_context} tokens, "
            f"prompt and answer together; the prompt has {tokens}."
        )


class CacheTooSmallError(PromptError):
    """The keys and values of a request alone take more memory than all may have together.

    Args:
        tokens: of its prompt, and of the longest answer that it asks for.
        cells: tokens that fit.
    """

    def __init__(self, tokens: tuple[int, int], *, cells: int) -> None:
        prompt, answer = tokens
        super().__init__(
            f"The request needs room for {2 * prompt + answer} tokens while its prompt of {prompt} "
            f"is read for an answer of up to {answer}; this server's cache holds {cells}. Ask for "
            "a shorter answer or send a shorter prompt, or serve with a larger --cache-memory."
        )


class GenerationTimeoutError(LciaError, TimeoutError):
    """An answer took longer than its request allows."""


class AdapterError(StoreError):
    """The adapter of one request cannot be used."""


class AdapterRemovedError(AdapterError):
    """The version that was to answer was pruned while the request waited; newer ones answer."""


class GenerationFailedError(LciaError, RuntimeError):
    """The model failed; the log says how."""


class DeviceMemoryError(GenerationFailedError):
    """There was not enough memory; fewer requests at once may fit."""


class ShuttingDownError(LciaError, RuntimeError):
    """The engine was stopped before the answer was finished."""


def generation_error(error: Exception) -> LciaError:
    """Return how a failure of the model is told to whoever waits for an answer."""
    if isinstance(error, LciaError):
        return error
    if is_out_of_memory(error):
        return DeviceMemoryError("The server ran out of memory; try again, or ask for less.")
    return GenerationFailedError(f"The model failed: {type(error).__name__}: {error}")


def adapter_error(adapter: tuple[str, Path] | None, error: Exception) -> LciaError:
    """Return how a failure to load an adapter, key and folder, is told to whoever asked for it."""
    if is_out_of_memory(error):
        return generation_error(error)
    key, folder = adapter or ("base", None)
    if folder is not None and not folder.exists():
        return AdapterRemovedError(
            f"The adapter {key} was removed while the request waited: its version was pruned. "
            "Ask again."
        )
    said = str(error) if isinstance(error, LciaError) else f"{type(error).__name__}: {error}"
    return AdapterError(f"The adapter {key} cannot be used: {said}")
