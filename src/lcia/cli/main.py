"""The ``lcia`` command: one file a verb, imported when the verb runs.

``lcia --help`` answers at once: torch, transformers and the rest of lcia are imported inside the
verbs that need them.
"""

import logging
import os
import sys
from typing import Annotated

import typer

from lcia.cli import catalog, chat, data, evaluate, groups, learn, models, plan, report, run, store

app = typer.Typer(
    help="An assistant that keeps learning: teach a language model one task after another.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in (run, learn, plan, evaluate, report, chat, groups, store, data, models, catalog):
    verb.register(app)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and all logs.")] = False,
) -> None:
    """An assistant that keeps learning: teach a language model one task after another."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "info" if debug else "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not debug:
        logging.captureWarnings(True)
    level = logging.DEBUG if debug else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("py.warnings").setLevel(logging.INFO if debug else logging.ERROR)


def main() -> None:
    """Run the command line; errors are one line, and the exit code says whose they are."""
    from lcia.errors import LciaError

    debug = "--debug" in sys.argv
    if "--json" in sys.argv:
        sys.stdout = sys.stderr  # some libraries log to stdout when they are imported
    try:
        app()
    except LciaError as error:
        if debug:
            raise
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("Stopped. Run the same command again to continue.\n")
        sys.exit(130)
    except Exception as error:  # the outermost edge
        if debug:
            raise
        sys.stderr.write(f"{type(error).__name__}: {error}\nRun with --debug for the traceback.\n")
        sys.exit(1)
