"""The folder of an export: it appears by one rename, with a card, and may go to a model hub."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lcia.errors import ConfigError, PushError, StoreError
from lcia.evaluation.metrics import METRICS, summarise
from lcia.files import discard, make_folders, settle, write_json
from lcia.learner import Store, Version
from lcia.models.loading import is_embedded
from lcia.models.lora import EXPERT_ROUTERS, read_config
from lcia.models.visual import PROJECTOR
from lcia.registry import MODELS

ABOUT, SCRIPT = "lcia.json", "serve.sh"


def write_export(
    store: Store,
    folder: Path,
    write: Callable[[Version, Path], dict[str, Any]],
    *,
    relation: str = "adapter",
) -> dict[str, Any]:
    """Write an export of the current version, its card and what it says of itself, ``lcia.json``.

    Args:
        store: the assistant.
        folder: new or empty.
        write: writes the rest into the folder it is given, and returns what ``lcia.json`` says
            beyond assistant, version and adapters.
        relation: ``adapter`` or ``merge``, what it is to its base model.

    Raises:
        StoreError: ``folder`` is not empty, or nothing is learned.
    """
    version = store.current
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder}: is not empty; expected a new folder.")
    if not version.adapters:
        raise StoreError(f"{store.root}: has learned nothing yet; there are no adapters.")
    target = folder.absolute()
    make_folders(target.parent)
    draft = target.with_name(f".{target.name}.tmp")
    try:
        discard(draft)  # a killed export's
        draft.mkdir()
        about: dict[str, Any] = {
            "assistant": store.root.resolve().name,
            "version": version.number,
            "adapters": {group: key for group, (key, _) in version.adapters.items()},
        }
        about |= write(version, draft)
        write_card(store, version, draft, groups=list(version.adapters), relation=relation)
        write_json(draft / ABOUT, about)
        settle(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return about


def write_script(
    draft: Path, about: Mapping[str, Any], *, tool: str, command: str, options: Sequence[str]
) -> None:
    """Write ``serve.sh``, which serves an export.

    Args:
        draft: the folder of the export.
        about: what ``lcia.json`` says; ``assistant`` and ``version`` are read.
        tool: what serves it, as people call it.
        command: the shell's lines up to the options; the last one starts it.
        options: of the tool, a line each; those that the script is given follow.
    """
    script = draft / SCRIPT
    script.write_text(
        "#!/usr/bin/env bash\n"
        f"# Serves version {about['version']} of {json.dumps(about['assistant'])} with {tool}.\n"
        "# In front of it: lcia gateway --upstream http://HOST:8000 --store STORE\n"
        "set -euo pipefail\n"
        'cd "$(dirname "$0")"\n' + " \\\n  ".join([command, *options]) + ' "$@"\n',
        encoding="utf-8",
    )
    script.chmod(0o755)


def check_plain(group: str, adapter: Path, *, reader: str) -> None:
    """Refuse an adapter that needs more than ``reader`` knows.

    Raises:
        StoreError: it has expert routers or a projector, or is more than plain LoRA.
    """
    read_config(adapter)
    if (adapter / EXPERT_ROUTERS).is_file():
        raise StoreError(
            f"group {group}: is a mixture of experts; {reader} knows no expert routers and "
            "would sum the experts. Serve it with 'lcia serve'."
        )
    if (adapter / PROJECTOR).is_file():
        raise StoreError(
            f"group {group}: has a projector of its own, and {reader} takes adapters alone. Learn "
            "with 'projector: frozen', or serve it with 'lcia serve'."
        )


SHOWN = ("average_accuracy", "forgetting", "new_accuracy", "backward_transfer")
INSTRUCTIONS = 3


def write_card(
    store: Store, version: Version, folder: Path, *, groups: Sequence[str], relation: str
) -> None:
    """Write the card of some groups of a version.

    Args:
        store: the assistant.
        version: what is exported.
        folder: gets ``README.md``.
        groups: ids of the groups in the folder.
        relation: ``adapter`` or ``merge``, what the folder is to its base model.
    """
    known = {group.id: group for group in version.codebook().groups}
    chosen = [known[group] for group in groups]
    taught = {task.name for group in chosen for task in group.tasks}
    rows = [row for row in _scores(version) if row["task"] in taught]
    name = store.root.resolve().name
    about = f"Version {version.number} of the assistant `{name}`, made with lcia: "
    about += "one LoRA adapter per group of similar instructions, routed by the instruction."
    parts = [
        f"---\n{yaml.safe_dump(_metadata(store, name, rows, relation), sort_keys=False)}---",
        f"# {name}, {', '.join(group.name for group in chosen)}",
        about,
        f"Base model: `{store.config.model}` (content `{store.content_hash[:12]}`).",
        "## Groups",
        _table(
            ("group", "name", "tasks", "answers instructions such as"),
            [
                (
                    group.id,
                    group.name,
                    ", ".join(task.name for task in group.tasks),
                    "; ".join(group.instructions[:INSTRUCTIONS]),
                )
                for group in chosen
            ],
        ),
        "## Scores in percent",
        _table(
            ("task", "scorer", "base model", "when learned", "now", "data"),
            [tuple(row.values()) for row in rows],
        )
        if rows
        else "Not measured: the adapter was imported without data.",
        "Of the whole assistant: "
        + ", ".join(
            f"{METRICS[key].label} {_number(value)}"
            for key, value in summarise(version.matrix()).items()
            if key in SHOWN and value is not None
        )
        + ".",
        "*data* is the beginning of the SHA-256 of the task's samples. Held-out samples are scored "
        "through the router, with greedy answers.",
    ]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def license_of(model: str) -> str | None:
    """Return the licence of a base model as the hub writes it; None where nothing says it."""
    if is_embedded(model):
        return str(MODELS.get(model).license.partition(" ")[0].lower())
    card = Path(model).expanduser() / "README.md"
    if not card.is_file():
        return None
    head = card.read_text(encoding="utf-8", errors="replace").split("---", 2)
    try:
        said = yaml.safe_load(head[1]) if len(head) == 3 and not head[0].strip() else None
    except yaml.YAMLError:
        return None
    found = said.get("license") if isinstance(said, dict) else None
    return found if isinstance(found, str) else None


def _metadata(
    store: Store, name: str, rows: Sequence[dict[str, Any]], relation: str
) -> dict[str, Any]:
    base = store.config.model
    found: dict[str, Any] = {
        "library_name": "peft" if relation == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["lcia", "continual-learning", "lora"],
    }
    if "/" in base and not Path(base).expanduser().exists():  # else it is no model of the hub
        found = {"base_model": base, "base_model_relation": relation, **found}
    if licence := license_of(base):
        found["license"] = licence
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": row["task"], "type": row["task"]},
            "metrics": [{"type": row["scorer"], "value": float(row["now"])}],
        }
        for row in rows
        if row["now"] != "–"
    ]
    if results:
        found["model-index"] = [{"name": name, "results": results}]
    return found


def _scores(version: Version) -> list[dict[str, Any]]:
    """Return one row per learned task: what it scored, and which data it was."""
    matrix = version.matrix()
    rows = []
    for task in version.tasks():
        i = matrix.tasks.index(task.name) + 1
        place = Path(version.manifest["tasks"][task.name]).name
        cells = (matrix[0, i], matrix[min(i, matrix.learned), i], matrix[matrix.learned, i])
        base, learned, now = map(_number, cells)
        rows.append(
            {
                "task": task.name,
                "scorer": task.scorer,
                "base": base,
                "learned": learned,
                "now": now,
                "data": place.partition("-")[0],
            }
        )
    return rows


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = [[" ".join(str(cell).replace("|", "\\|").split()) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


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
