"""``lcia export``: an assistant for other tools."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from lcia.cli.store import StorePath


class Format(str, Enum):
    """What ``lcia export`` writes."""

    vllm = "vllm"
    peft = "peft"
    merged = "merged"
    gguf = "gguf"
    llama_cpp = "llama.cpp"
    ollama = "ollama"


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(export)


def export(
    store: StorePath,
    output: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="Adapters for vLLM, llama.cpp's server or peft; or one model per group: merged, "
            "gguf, ollama.",
        ),
    ] = Format.vllm,
    push: Annotated[
        str | None,
        typer.Option("--push", help="Upload it to the model hub.", metavar="USER/NAME"),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="A repository that --push makes is for everybody.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Write the groups for other tools, each with a model card.

    In front of vLLM or llama.cpp's server, 'lcia gateway' sends each request to its group.

    Examples:

      lcia export assistant exported --format vllm

      lcia export assistant exported --format llama.cpp

      lcia export assistant models --format ollama

      lcia export assistant adapters --format peft --push user/name
    """
    from lcia.cli.console import console, print_json
    from lcia.exports.folder import check_push
    from lcia.exports.folder import push as upload
    from lcia.learner import Store

    if push is not None:
        check_push(push)
    about, told = _write(Store.open(store), output, form, quiet=as_json)
    if push is not None:
        message = f"Version {about['version']} of {about['assistant']}"
        about["pushed"] = upload(output, push, private=not public, message=message)
        told += f"\nPushed: {about['pushed']}"
    if as_json:
        print_json({**about, "format": form.value})
        return
    console.print(told, markup=False, soft_wrap=True)


def _write(store: Any, output: Path, form: Format, *, quiet: bool) -> tuple[dict[str, Any], str]:
    """Write an export; return what it says of itself, and what to tell."""
    if form is Format.vllm:
        from lcia.exports.vllm import export_vllm

        about = export_vllm(store, output)
        return about, (
            f"{output}: {len(about['ranks'])} adapters of version {about['version']}, for "
            f"--max-lora-rank {about['max_lora_rank']}.\nServe: {output / 'serve.sh'}\n"
            f"Route: lcia gateway --upstream http://127.0.0.1:8000 --store {store.root}"
        )
    if form is Format.llama_cpp:
        from lcia.exports.gguf import export_llama_cpp

        about = export_llama_cpp(store, output)
        return about, (
            f"{output}: the base model and {len(about['adapters'])} adapters of version "
            f"{about['version']}.\nServe: {output / 'serve.sh'}\n"
            f"Route: lcia gateway --upstream http://127.0.0.1:8000 --store {store.root}"
        )
    if form is Format.peft:
        from lcia.exports.peft import export_peft

        about = export_peft(store, output)
        return about, f"{output}: {len(about['adapters'])} adapters of version {about['version']}."
    return _write_models(store, output, form, quiet=quiet)


def _write_models(
    store: Any, output: Path, form: Format, *, quiet: bool
) -> tuple[dict[str, Any], str]:
    """Write one whole model per group, which takes a while."""
    from lcia.cli.console import Bar
    from lcia.exports.gguf import FILE, export_gguf
    from lcia.exports.peft import export_merged

    with Bar(quiet=quiet) as bar:

        def told(group: str, done: int, total: int) -> None:
            bar.show("merging groups", done, total, note=group)

        if form is Format.merged:
            about = export_merged(store, output, told=told)
        else:
            about = export_gguf(store, output, ollama=form is Format.ollama, told=told)
    group, largest = next(iter(about["difference"])), max(about["difference"].values())
    lines = [
        f"{output}: {len(about['adapters'])} models of version {about['version']}; a logit differs "
        f"by at most {largest:.1e} of the largest."
    ]
    if form is Format.gguf:
        lines.append(f"Serve: llama-server --jinja --model {output / group / FILE}")
    if form is Format.ollama:
        name = f"{about['assistant']}-{group}"
        lines.append(f"Serve: ollama create {name} -f {output / group / 'Modelfile'}")
    return about, "\n".join(lines)
