"""The model card of an export: README.md with the metadata that the model hub reads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lcia.evaluation.metrics import METRICS, summarise
from lcia.learner import Store, Version
from lcia.models.loading import is_embedded
from lcia.registry import MODELS

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
