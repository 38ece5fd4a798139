"""One projector for all groups of a vision-language assistant (``projector: shared``)."""

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from lcia.distributed.processes import on_main
from lcia.files import place_copy
from lcia.models.projector import FILE


def shared_projector(adapters: Mapping[str, tuple[str, Path]]) -> Path | None:
    """Return an adapter that has the projector all of them share; None before the first task."""
    folders = (folder for _, folder in adapters.values())
    return next((folder for folder in folders if (folder / FILE).is_file()), None)


def share_projector(
    trained: Path, others: Mapping[str, tuple[str, Path]], *, folder: Path
) -> dict[str, Path]:
    """Copy the other groups' adapters, each with the projector that was just trained.

    A version's folders never change, and the answers of every group do: so each gets a new one,
    and all that goes by folder (answers kept, roll-back, checksums) stays right.

    Args:
        trained: the adapter with that projector.
        others: group to the key and folder of its adapter.
        folder: where to write the copies.

    Returns:
        Group to the folder of its copy.
    """

    def copy(source: Path, target: Path) -> None:
        place_copy(source, target)
        shutil.copyfile(trained / FILE, target / FILE)

    for group, (_, source) in others.items():
        on_main(partial(copy, source, folder / group))
    return {group: folder / group for group in others}
