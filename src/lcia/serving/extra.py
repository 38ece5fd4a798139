"""The packages that only serving needs."""

from importlib.util import find_spec

from lcia.errors import MissingDependencyError

PACKAGES = ("fastapi", "httpx", "prometheus_client", "uvicorn")


def check_installed() -> None:
    """Check that the extra ``serve`` is installed.

    Raises:
        MissingDependencyError: it is not.
    """
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise MissingDependencyError(
            f"Serving needs {', '.join(missing)}. Install with: pip install 'lcia[serve]'."
        )
