"""The folder of an export: it appears by one rename, with a model card."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lcia.errors import StoreError
from lcia.exports.card import write_card
from lcia.files import discard, make_folders, settle, write_json
from lcia.learner import Store, Version
from lcia.models.experts import EXPERT_ROUTERS
from lcia.models.lora import read_config
from lcia.models.projector import FILE as PROJECTOR

ABOUT, SCRIPT = "lcia.json", "serve.sh"


def write_export(
    store: Store,
    folder: Path,
    write: Callable[[Version, Path], dict[str, Any]],
    *,
    relation: str = "adapter",
) -> dict[str, Any]:
    """Write an export of the current version, its card and what it says of itself, ``lcia.json``.

    Args:
        store: the assistant.
        folder: new or empty.
        write: writes the rest into the folder it is given, and returns what ``lcia.json`` says
            beyond assistant, version and adapters.
        relation: ``adapter`` or ``merge``, what it is to its base model.

    Raises:
        StoreError: ``folder`` is not empty, or nothing is learned.
    """
    version = store.current
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder}: is not empty; expected a new folder.")
    if not version.adapters:
        raise StoreError(f"{store.root}: has learned nothing yet; there are no adapters.")
    target = folder.absolute()
    make_folders(target.parent)
    draft = target.with_name(f".{target.name}.tmp")
    try:
        discard(draft)  # a killed export's
        draft.mkdir()
        about: dict[str, Any] = {
            "assistant": store.root.resolve().name,
            "version": version.number,
            "adapters": {group: key for group, (key, _) in version.adapters.items()},
        }
        about |= write(version, draft)
        write_card(store, version, draft, groups=list(version.adapters), relation=relation)
        write_json(draft / ABOUT, about)
        settle(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return about


def write_script(
    draft: Path, about: Mapping[str, Any], *, tool: str, command: str, options: Sequence[str]
) -> None:
    """Write ``serve.sh``, which serves an export.

    Args:
        draft: the folder of the export.
        about: what ``lcia.json`` says; ``assistant`` and ``version`` are read.
        tool: what serves it, as people call it.
        command: the shell's lines up to the options; the last one starts it.
        options: of the tool, a line each; those that the script is given follow.
    """
    script = draft / SCRIPT
    script.write_text(
        "#!/usr/bin/env bash\n"
        f"# Serves version {about['version']} of {json.dumps(about['assistant'])} with {tool}.\n"
        "# In front of it: lcia gateway --upstream http://HOST:8000 --store STORE\n"
        "set -euo pipefail\n"
        'cd "$(dirname "$0")"\n' + " \\\n  ".join([command, *options]) + ' "$@"\n',
        encoding="utf-8",
    )
    script.chmod(0o755)


def check_plain(group: str, adapter: Path, *, reader: str) -> None:
    """Refuse an adapter that needs more than ``reader`` knows.

    Raises:
        StoreError: it has expert routers or a projector, or is more than plain LoRA.
    """
    read_config(adapter)
    if (adapter / EXPERT_ROUTERS).is_file():
        raise StoreError(
            f"group {group}: is a mixture of experts; {reader} knows no expert routers and "
            "would sum the experts. Serve it with 'lcia serve'."
        )
    if (adapter / PROJECTOR).is_file():
        raise StoreError(
            f"group {group}: has a projector of its own, and {reader} takes adapters alone. Learn "
            "with 'projector: frozen', or serve it with 'lcia serve'."
        )
