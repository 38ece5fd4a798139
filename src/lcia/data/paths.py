"""Paths as stream files write them: relative to the file, with environment variables."""

import os
import re
from pathlib import Path

from lcia.errors import ConfigError

_VARIABLE = re.compile(r"\$\{(\w+)\}")


def resolve(path: str | Path, *, base: str | Path, where: str) -> Path:
    """Return a path of a stream file, its ``${VARIABLE}`` replaced.

    Args:
        path: relative to ``base``, absolute, or beginning with a variable whose value is then
            relative to the working directory, as the shell's user means it.
        base: folder of the stream's file.
        where: the key that holds the path, for messages.

    Raises:
        ConfigError: a variable is not set.
    """
    text = str(path)

    def value(match: re.Match[str]) -> str:
        name = match[1]
        found = os.environ.get(name)
        if not found:
            rest = text[match.end() :].strip("/")
            holds = f" that holds '{rest}'" if rest else ""
            raise ConfigError(
                f"{where} is '{text}', but the environment variable {name} is not set. Set it to "
                f"the folder{holds}, for example: export {name}=/path/to/folder"
            )
        return os.path.abspath(found) if match.start() == 0 else found

    return Path(base) / _VARIABLE.sub(value, text)
