"""An export on the model hub, by huggingface_hub."""

from pathlib import Path

from lcia.errors import ConfigError, PushError


def check_push(repo: str) -> None:
    """Check, before anything is written, that a push can be tried.

    Args:
        repo: ``user/name``.

    Raises:
        ConfigError: it is no name of a repository, or nobody is logged in.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
        valid = "/" in repo
    except HFValidationError:
        valid = False
    if not valid:
        raise ConfigError(f"--push {repo}: is no repository; expected user/name.")
    if get_token() is None:
        raise ConfigError(
            "--push: nobody is logged in to the hub. Say 'hf auth login', or set HF_TOKEN to a "
            "token that may write."
        )


def push(folder: Path, repo: str, *, private: bool, message: str) -> str:
    """Upload an export; a repository that is not there is made.

    Args:
        folder: the export.
        repo: ``user/name``.
        private: whether a new repository is seen by its owner only.
        message: of the commit.

    Returns:
        Where it is.

    Raises:
        PushError: the hub refused it or cannot be reached; the export stays.
    """
    import httpx
    from huggingface_hub import HfApi

    api = HfApi(library_name="lcia")
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message=message)
    except (OSError, httpx.HTTPError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise PushError(
            f"{repo}: could not be pushed: {reason} The export is in {folder}; later, "
            f"'hf upload {repo} {folder}' pushes it."
        ) from error
    return str(url)
