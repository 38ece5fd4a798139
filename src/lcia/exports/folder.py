"""The folder of an export: it appears by one rename, with a model card."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lcia.errors import StoreError
from lcia.exports.card import write_card
from lcia.files import discard, make_folders, settle, write_json
from lcia.learner import Store, Version
from lcia.models.experts import EXPERT_ROUTERS
from lcia.models.lora import read_config
from lcia.models.projector import FILE as PROJECTOR

ABOUT = "lcia.json"


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
