"""One process acts, the others wait: what every rank of a distributed run has to agree on."""

from collections.abc import Callable
from typing import Any

from accelerate import PartialState


def is_main() -> bool:
    """Tell whether this is the process that writes."""
    return bool(PartialState().is_main_process)


def on_main(action: Callable[[], Any]) -> None:
    """Do something on the main process only, while the others wait until it is done."""
    if is_main():
        action()
    PartialState().wait_for_everyone()


def everyone(look: Callable[[], bool]) -> bool:
    """Look at files before any process goes on to change them."""
    seen = look()
    PartialState().wait_for_everyone()
    return seen
