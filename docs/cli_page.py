"""Put the real output of ``--help`` into the blocks of docs/cli.md: python docs/cli_page.py."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("cli.md")
BLOCK = re.compile(r"```text\n\$ lcia ([^\n]*--help)\n.*?```", re.DOTALL)


def shown(match: re.Match[str]) -> str:
    """Return the block with what the command prints now."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lcia"), *shlex.split(match[1])],
        env={**os.environ, "COLUMNS": "88"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = (line.rstrip() for line in done.stdout.strip().splitlines())
    return "\n".join(["```text", f"$ lcia {match[1]}", *lines, "```"])


if __name__ == "__main__":
    PAGE.write_text(BLOCK.sub(shown, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
