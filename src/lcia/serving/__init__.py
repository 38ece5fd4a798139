"""An OpenAI-compatible server that routes each request to what the assistant learned."""

from importlib.util import find_spec

from lcia.errors import MissingDependencyError

__all__ = ["EXTRAS", "check_installed"]

EXTRAS = {
    "serve": ("Serving", ("fastapi", "httpx", "prometheus_client", "uvicorn")),
    "live": (
        "Learning while serving",
        ("fastapi", "python_multipart", "sqlalchemy", "uvicorn"),
    ),
}
"""Extra to what it is for, and its packages."""


def check_installed(extra: str = "serve") -> None:
    """Check that an extra is installed.

    Raises:
        MissingDependencyError: it is not.
    """
    purpose, packages = EXTRAS[extra]
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise MissingDependencyError(
            f"{purpose} needs {', '.join(missing)}. Install with: pip install 'lcia[{extra}]'."
        )
