"""An assistant's groups as plain PEFT adapters, one folder each."""

import shutil
from pathlib import Path
from typing import Any

from lcia.exports.card import write_card
from lcia.exports.folder import check_plain, write_export
from lcia.learner import Store, Version

FILES = ("adapter_config.json", "adapter_model.safetensors")


def export_peft(store: Store, folder: Path) -> dict[str, Any]:
    """Write every group's adapter as it is stored, byte for byte, with a model card.

    What lcia keeps beside an adapter, such as samples it remembers, stays in the store.

    Args:
        store: the assistant.
        folder: new or empty; gets one folder per group, named like it.

    Returns:
        What ``lcia.json`` says.

    Raises:
        StoreError: ``folder`` is not empty, nothing is learned, or peft cannot read a group.
    """

    def write(version: Version, draft: Path) -> dict[str, Any]:
        for group, (_, adapter) in version.adapters.items():
            check_plain(group, adapter, reader="peft")
            (draft / group).mkdir()
            for file in FILES:
                shutil.copy(adapter / file, draft / group / file)
            write_card(store, version, draft / group, groups=[group], relation="adapter")
        return {"model": store.config.model}

    return write_export(store, folder, write)
