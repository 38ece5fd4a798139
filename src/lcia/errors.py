"""The errors lcia raises.

Every message says where, what was expected, what was found and what to do.
"""

import re

LINE = 1_600
"""Characters of a line of a message that are shown."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def escaped(text: str) -> str:
    """Return a text with control characters but tab and line feed written out."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def printable(text: str) -> str:
    """Return a text as a terminal may have it.

    Control characters are escaped, and the middle of a line of more than ``LINE`` characters is
    left out: what stands in somebody's file may be anything.
    """
    plain = escaped(text)
    return "\n".join(
        line if len(line) <= LINE else f"{line[: LINE * 3 // 4]} ... {line[-LINE // 4 :]}"
        for line in plain.split("\n")
    )


class LciaError(Exception):
    """Base of every error lcia raises on purpose.

    Attributes:
        exit_code: what the command line ends with: 2 for wrong usage, configuration or data
            (nothing was done), 1 for a run that failed.
    """

    exit_code = 1


class ConfigError(LciaError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""

    exit_code = 2


class DataError(LciaError, ValueError):
    """A data file is missing, unreadable or has records that cannot be used."""

    exit_code = 2


class ModelError(LciaError, OSError):
    """A model cannot be found, prepared or loaded."""

    exit_code = 2


class StoreError(LciaError, OSError):
    """The assistant's directory is missing, damaged, busy or of another schema."""

    exit_code = 2


class DamageError(StoreError):
    """Files of an assistant are not as they were stored."""

    exit_code = 1


class WriteError(StoreError):
    """A file cannot be written: the disk is full, read-only or somebody else's."""

    exit_code = 1


class MissingDependencyError(LciaError, ImportError):
    """An optional package is needed; the message names the extra that installs it."""

    exit_code = 2


class TrainingError(LciaError, RuntimeError):
    """Training could not go on, for example because a method found no gradients."""


class OutOfMemoryError(TrainingError):
    """Memory, of the machine or of a device, ran out; calling again resumes."""


class DivergenceError(TrainingError):
    """A loss, gradient or parameter is not finite; nothing of the training is kept."""


class PushError(LciaError, OSError):
    """The model hub refused an export or could not be reached; the export is whole."""


class GateError(LciaError, RuntimeError):
    """The new version lost more than the gate allows; the store was left as it was."""
