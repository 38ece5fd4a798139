"""``lcia export``: an assistant for other servers."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Format(str, Enum):
    """What ``lcia export`` writes."""

    vllm = "vllm"


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(export)


def export(
    store: Annotated[Path, typer.Argument(help="An assistant's folder.")],
    output: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    form: Annotated[Format, typer.Option("--format", help="For which server.")] = Format.vllm,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Write the groups as adapters for vLLM, with a script.

    In front of vLLM, 'lcia gateway' sends each request to its group.

    Examples:

      lcia export assistant exported --format vllm
    """
    from lcia.cli.console import console, print_json
    from lcia.learner import Store
    from lcia.serving.extra import check_installed

    check_installed()
    from lcia.serving.export import export_vllm

    about = export_vllm(Store.open(store), output)
    if as_json:
        print_json({**about, "format": form.value})
        return
    console.print(
        f"{output}: {len(about['ranks'])} adapters of version {about['version']}, for "
        f"--max-lora-rank {about['max_lora_rank']}.\nServe: {output / 'serve.sh'}\n"
        f"Route: lcia gateway --upstream http://127.0.0.1:8000 --store {store}",
        markup=False,
        soft_wrap=True,
    )
