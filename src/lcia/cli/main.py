"""The ``lcia`` command: one file a verb, imported when the verb runs.

``lcia --help`` answers at once: torch, transformers and the rest of lcia are imported inside the
verbs that need them.
"""

import errno
import io
import logging
import os
import sys
import traceback
from typing import Annotated, Any

import typer

from lcia.cli import (
    catalog,
    chat,
    compare,
    data,
    evaluate,
    export,
    forget,
    gateway,
    groups,
    import_,
    inbox,
    keys,
    learn,
    plan,
    releases,
    run,
    serve,
    store,
    worker,
)
from lcia.errors import ConfigError, LciaError, printable
from lcia.files import disk_error

UNUSABLE = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM)
"""What is wrong with a path wherever it is first looked at."""

UsageError: Any = typer.BadParameter.__base__
"""What typer raises for a command that is wrong; some of its versions have a click of their own."""

INTERRUPTED = 130

app = typer.Typer(
    help="An assistant that keeps learning: teach a language model one task after another.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in (
    run,
    compare,
    learn,
    plan,
    evaluate,
    chat,
    serve,
    gateway,
    worker,
    inbox,
    releases,
    keys,
    forget,
    export,
    import_,
    groups,
    store,
    data,
    catalog,
):
    verb.register(app)


TOGETHER = {"run", "learn", "eval"}
"""Verbs that several processes share; with the others each would do all of it."""


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and all logs.")] = False,
) -> None:
    """An assistant that keeps learning: teach a language model one task after another."""
    verb, processes = context.invoked_subcommand, int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and verb not in TOGETHER:
        raise ConfigError(
            f"lcia {verb} works in one process, and a launcher started {processes}. Start it "
            "without the launcher (or unset WORLD_SIZE, if nothing else started it)."
        )
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "info" if debug else "error")
    if debug:
        logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(name)s: %(message)s")
        return
    # lcia shows its own progress; the bars of the libraries below it would tear it apart.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # else a line for every retry
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.ERROR)
    logging.getLogger("lcia").setLevel(logging.INFO)


class _Plain(logging.Formatter):
    """The message alone, safe for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message of a record."""
        return printable(super().format(record))


def main() -> None:
    """Run the command line; errors are one line, and the exit code says whose they are."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from lcia.distributed.launch import hold_output

        hold_output()
    debug = "--debug" in sys.argv
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names and texts that it cannot write
    if "--json" in sys.argv:
        sys.stdout = sys.stderr  # some libraries log to stdout when they are imported
    try:
        ended = app(prog_name="lcia", standalone_mode=False)
        if ended == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(ended if isinstance(ended, int) else 0)
    except UsageError as error:
        _fail(_usage(error), 2, debug=debug)
    except LciaError as error:
        _fail(str(error), error.exit_code, debug=debug)
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("Stopped. Run the same command again to continue.\n")
        sys.exit(INTERRUPTED)
    except Exception as error:  # noqa: BLE001  the outermost edge
        if isinstance(error, OSError) and error.errno in UNUSABLE and error.filename is not None:
            text = f"{error.filename}: cannot be used: {error.strerror}."
            _fail(text, 2, debug=debug)
        if refused := disk_error(error):
            _fail(str(refused), refused.exit_code, debug=debug)
        text = f"{type(error).__name__}: {error}\nRun with --debug for the traceback."
        _fail(text, 1, debug=debug)


def _usage(error: Any) -> str:
    """Return what is wrong with a command in one line; the help where nothing was asked for."""
    message, context = error.format_message().replace("Value error, ", ""), error.ctx
    if context is None or "\n" in message:
        return str(message)
    stop = "" if message.endswith(("?", ".")) else "."
    return f"{message}{stop} See '{context.command_path} --help'."


def _fail(message: str, code: int, *, debug: bool) -> None:
    """Print an error, once for all processes that a launcher started, and end them."""
    if debug:
        traceback.print_exc()
    message = printable(message)
    channel = None
    if "lcia.distributed.launch" in sys.modules:
        from lcia.distributed.launch import after_main, joined

        channel = joined()
        if channel is None:
            after_main(message)
    if channel is not None:
        channel.fail(message, code)
    sys.stderr.write(f"{message}\n")
    sys.exit(code)
