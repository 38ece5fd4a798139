"""Adapters that were trained elsewhere: a foreign PEFT LoRA becomes a group of its own."""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lcia.data.sample import Task, check_name
from lcia.decision.placing import Placed, instructions_of
from lcia.errors import ConfigError, StoreError
from lcia.evaluation.generate import Adapters
from lcia.files import place_copy, sha256_of
from lcia.grouping import InstructionCodebook, InstructionRecipe, told
from lcia.learner.learning import ContinualLearner
from lcia.learner.lifecycle import revise
from lcia.learner.outcome import Outcome
from lcia.models.host import AdapterHost
from lcia.models.lora import read_config
from lcia.store.journal import Journal
from lcia.store.version import Version, check_adapter

logger = logging.getLogger(__name__)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."


def import_adapter(
    learner: ContinualLearner, folder: Path, *, name: str, instructions: Sequence[str]
) -> Version:
    """Make a foreign adapter a group that answers prompts with given instructions.

    Nothing is known of what it can do: it has no scores, and counts in none.

    Args:
        learner: of the assistant.
        folder: the adapter, as peft writes it.
        name: what the group is called, and the task it stands for.
        instructions: at least one; a prompt that holds one, or is most like it, goes to the group.

    Raises:
        ConfigError: the adapter does not fit the base model, the name is taken, the method keeps
            one group, or there is no instruction.
        StoreError: it is damaged or more than plain LoRA; a task is unfinished.
    """
    _check_new(learner, name)
    check_foreign(learner, folder)
    texts = [text.strip() for text in instructions if text.strip()]
    if not texts:
        raise ConfigError(
            "import: without data, say which prompts the adapter answers: --instruction TEXT."
        )
    opened: list[str] = []

    def change(codebook: InstructionCodebook, entries: dict[str, Any]) -> None:
        extraction = InstructionRecipe.parse(recipe_of(texts)).fit(texts)
        opened.append(codebook.add(None, extraction, task=name, prompts=texts))
        codebook.rename(opened[0], name)

    def make(adapters: Adapters, scratch: Path) -> Mapping[str, Path]:
        return {opened[0]: copy_adapter(folder, scratch / opened[0])}

    # A killed import is finished only by the same one.
    content = hashlib.sha256("\n".join([sha256_of(folder / WEIGHTS), *texts]).encode())
    note = f"import {name} ({content.hexdigest()[:12]})"
    return revise(learner, change, note=note, make=make)


def import_with_data(learner: ContinualLearner, folder: Path, task: Task) -> Outcome:
    """Make a foreign adapter the group of a task, with scores, as if it had learned it.

    A transaction like learning: gate, journal and resuming are the same.

    Args:
        learner: of the assistant.
        folder: the adapter, as peft writes it.
        task: what it was trained on; ``train`` says what its prompts are like, ``test`` is scored.

    Raises:
        LciaError: see ``import_adapter`` and ``ContinualLearner.learn``.
    """
    if task.name not in learner.store.current.manifest["tasks"]:
        _check_new(learner, task.name)
        check_foreign(learner, folder)
    own = _Importer(learner.store, host=learner.host, listener=learner.listener)
    own.folder = folder
    return own.learn(task)


class _Importer(ContinualLearner):
    """Learns a task by taking an adapter that has learned it."""

    folder: Path

    def _place(self, task: Task, current: Version, *, share: float, journal: Journal) -> Placed:
        now, joined = current.codebook(), current.codebook()
        joined.open_above(self.store.groups_opened())
        extraction = instructions_of(task)
        known = now.decide(extraction.instructions, system=extraction.system)
        prompts = [told(sample.messages) for sample in task.train]
        group = joined.add(None, extraction, task=task.name, prompts=prompts)
        joined.rename(group, task.name)
        decision = replace(known, group=None, reason="imported")
        placed = Placed(
            lesson=task,
            alone=task,
            held=(),
            decision=decision,
            now=now,
            joined=joined,
            group=group,
            start=self.folder,
            start_alone=self.folder,
        )
        placed.tell(journal)
        return placed

    def _train(self, placed: Placed, current: Version, **options: Any) -> Path:
        # Opened but not trained: the method remembers what it would remember of the task.
        return super()._train(placed, current, **{**options, "train": False})

    def _fingerprint(self, task: Task, schema: int) -> str:
        plain = super()._fingerprint(task, schema)
        files = "".join(sha256_of(self.folder / file) for file in (CONFIG, WEIGHTS))
        return hashlib.sha256((plain + files).encode()).hexdigest()


def recipe_of(instructions: Sequence[str]) -> dict[str, str]:
    """Return how to find given instructions in a prompt: as they are, whatever the white space."""
    longest_first = sorted(dict.fromkeys(instructions), key=len, reverse=True)
    patterns = (r"\s+".join(map(re.escape, text.split())) for text in longest_first)
    return {"regex": "|".join(patterns)}


def copy_adapter(source: Path, target: Path) -> Path:
    """Copy an adapter's two files, and no other; return where they are."""
    draft = target.with_name(f"{target.name}.draft")
    draft.mkdir(parents=True)
    for file in (CONFIG, WEIGHTS):
        (draft / file).write_bytes((source / file).read_bytes())
    place_copy(draft, target)
    return target


def _check_new(learner: ContinualLearner, name: str) -> None:
    """Check that a name is free, and that the assistant can have one more group."""
    check_name(name)
    groups = learner.store.current.codebook().groups
    taken = {group.name for group in groups} | {task.name for g in groups for task in g.tasks}
    if name in taken:
        raise ConfigError(f"import: '{name}' is already a task or a group. Choose another name.")
    method = learner.config.build_method()
    if learner.config.resolve_grouping().groups == "one" or not method.trains or method.joint:
        raise ConfigError(
            f"import: the method {learner.config.method['name']} keeps one adapter for all tasks, "
            "and has no place for another. Import into an assistant that groups, such as one with "
            "the method lcia."
        )


def check_foreign(learner: ContinualLearner, folder: Path) -> None:
    """Check that a foreign adapter is plain LoRA and fits the base model.

    Raises:
        ConfigError: it does not fit.
        StoreError: it is damaged, pickled, or more than plain LoRA.
    """
    if not (folder / CONFIG).is_file():
        raise StoreError(f"{folder}: is not an adapter: there is no {CONFIG}.")
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        remedy = (
            "lcia opens no pickles: load it with peft and save_pretrained it again."
            if pickled
            else "Copy it beside the configuration."
        )
        raise StoreError(f"{folder}: there is no {WEIGHTS}. {remedy}")
    config = read_config(folder)
    check_adapter(folder)
    host = learner.host
    if host.projector is not None:
        raise ConfigError(
            "import: this assistant trains a projector with every adapter, and a foreign adapter "
            "has none. Import into one made with 'projector: frozen'."
        )
    named, own = config.base_model_name_or_path, learner.config.model
    if named and Path(named).name != Path(own).name:
        logger.warning("%s: says it was trained on '%s'; the base is '%s'.", folder, named, own)
    _check_shapes(folder / WEIGHTS, host)


def _check_shapes(path: Path, host: AdapterHost) -> None:
    """Check that every matrix belongs to a linear layer of the base, and has its size."""
    host.clear()
    layers = dict(host.base.model.named_modules())
    try:
        with safe_open(path, framework="pt") as tensors:
            shapes = {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise StoreError(f"{path}: cannot be read: {error}.") from error
    for key, shape in shapes.items():
        name, _, rest = key.removeprefix(PREFIX).partition(".lora_")
        if rest not in ("A.weight", "B.weight"):
            raise StoreError(f"{path}: holds {key}, which is no LoRA matrix. Train without it.")
        layer: Any = layers.get(name)
        side = "in_features" if rest[0] == "A" else "out_features"
        wanted = getattr(layer, side, None)
        found = shape[1] if rest[0] == "A" else shape[0]
        if wanted != found:
            has = f"has {wanted} there" if wanted is not None else "has no such layer"
            raise ConfigError(
                f"{path}: {name} has {found} {side.replace('_', ' ')}, and this base model {has}. "
                "The adapter was trained on another base."
            )
        if not bool(_finite(path, key)):
            raise StoreError(f"{path}: {key} holds values that are not finite.")


def _finite(path: Path, key: str) -> bool:
    with safe_open(path, framework="pt") as tensors:
        return bool(tensors.get_tensor(key).isfinite().all())
