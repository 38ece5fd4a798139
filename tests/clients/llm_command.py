"""llm: the command line, with the server in its file of models."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from told import LONG, URL, tell

home = Path(tempfile.mkdtemp())
models = [
    {"model_id": "lcia", "model_name": "assistant", "api_base": URL},
    {"model_id": "lcia-text", "model_name": "base", "api_base": URL, "completion": True},
]
(home / "extra-openai-models.yaml").write_text(json.dumps(models))


def llm(*arguments):
    done = subprocess.run(
        [Path(sys.executable).with_name("llm"), *arguments],
        env={**os.environ, "LLM_USER_PATH": str(home), "OPENAI_API_KEY": "none"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip())


def too_long():
    try:
        llm("-m", "lcia", LONG)
    except RuntimeError as error:
        return "maximum context length" in str(error)
    return False


tell(
    answer=lambda: llm("-m", "lcia", "--no-stream", "green 7"),
    stream=lambda: llm("-m", "lcia", "-s", "Say the letter of the colour.", "green 7"),
    conversation=lambda: llm("-m", "lcia", "-c", "and red 1"),
    text=lambda: llm("-m", "lcia-text", "One, two,", "-o", "max_tokens", "4"),
    too_long=too_long,
)
