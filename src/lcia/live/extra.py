"""The packages that only learning while serving needs."""

from importlib.util import find_spec

from lcia.errors import MissingDependencyError

PACKAGES = ("fastapi", "python_multipart", "sqlalchemy", "uvicorn")


def check_live() -> None:
    """Check that the extra ``live`` is installed.

    Raises:
        MissingDependencyError: it is not.
    """
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise MissingDependencyError(
            f"Learning while serving needs {', '.join(missing)}. Install with: pip install "
            "'lcia[live]'."
        )
