"""``lcia export``: an assistant for other tools."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer


class Format(str, Enum):
    """What ``lcia export`` writes."""

    vllm = "vllm"
    peft = "peft"
    merged = "merged"


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(export)


def export(
    store: Annotated[Path, typer.Argument(help="An assistant's folder.")],
    output: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    form: Annotated[
        Format,
        typer.Option("--format", help="Adapters for vLLM or peft, or one merged model per group."),
    ] = Format.vllm,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Write the groups for other tools, each with a model card.

    In front of vLLM, 'lcia gateway' sends each request to its group.

    Examples:

      lcia export assistant exported --format vllm

      lcia export assistant models --format merged
    """
    from lcia.cli.console import console, print_json
    from lcia.learner import Store

    about, told = _write(Store.open(store), output, form)
    if as_json:
        print_json({**about, "format": form.value})
        return
    if form is Format.vllm:
        told += f"\nRoute: lcia gateway --upstream http://127.0.0.1:8000 --store {store}"
    console.print(told, markup=False, soft_wrap=True)


def _write(store: Any, output: Path, form: Format) -> tuple[dict[str, Any], str]:
    """Write an export; return what it says of itself, and what to tell."""
    if form is Format.vllm:
        from lcia.serving.extra import check_installed

        check_installed()
        from lcia.exports.vllm import export_vllm

        about = export_vllm(store, output)
        return about, (
            f"{output}: {len(about['ranks'])} adapters of version {about['version']}, for "
            f"--max-lora-rank {about['max_lora_rank']}.\nServe: {output / 'serve.sh'}"
        )
    if form is Format.peft:
        from lcia.exports.peft import export_peft

        about = export_peft(store, output)
        return about, f"{output}: {len(about['adapters'])} adapters of version {about['version']}."
    from lcia.exports.merged import export_merged

    about = export_merged(store, output)
    largest = max(about["difference"].values())
    return about, (
        f"{output}: {len(about['adapters'])} models of version {about['version']}; a logit differs "
        f"by at most {largest:.1e} of the largest."
    )
