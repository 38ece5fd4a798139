"""Optimizer, scheduler and random state beside Trainer's checkpoints, in safetensors and JSON.

Trainer pickles its own. With ``save_only_model`` it writes weights and its
step counter; ``TrainingState`` adds the rest, so that a resumed run equals an uninterrupted one
to the bit, and marks the checkpoint complete last.
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from lcia.distributed import zero
from lcia.distributed.fsdp import gathered, scattered
from lcia.distributed.launch import Launch
from lcia.distributed.plan import COMPLETE, steps_of
from lcia.errors import StoreError
from lcia.files import (
    check_sum,
    checksums,
    discard,
    read_sealed,
    sync_file,
    sync_tree,
    write_sealed,
)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in ``folder``; half-written ones do not count.

    Raises:
        StoreError: it is damaged.
    """
    complete = [marker.parent for marker in folder.glob(f"checkpoint-*/{COMPLETE}")]
    whole = [checkpoint for checkpoint in complete if _is_whole(checkpoint)]
    found = max(whole, key=checkpoint_step, default=None)
    if found is not None:
        check_checkpoint(found)
    return found


def check_checkpoint(checkpoint: Path) -> None:
    """Compare a complete checkpoint's files with their checksums; earlier ones have none.

    Raises:
        StoreError: one differs or is missing.
    """
    for name, wanted in read_sealed(checkpoint / COMPLETE).get("files", {}).items():
        try:
            check_sum(checkpoint / name, wanted)
        except StoreError as error:
            raise StoreError(
                f"{error} Or delete {checkpoint}: training goes on from the checkpoint before it."
            ) from error


def _is_whole(checkpoint: Path) -> bool:
    """Tell whether a checkpoint of an lcia that wrote no checksums was not half removed."""
    if "files" in read_sealed(checkpoint / COMPLETE):
        return True
    needed = ("adapter_config.json", "adapter_model.safetensors", "trainer_state.json")
    return all((checkpoint / name).is_file() for name in needed)


def checkpoint_step(checkpoint: Path) -> int:
    """Return the optimizer step a checkpoint was taken after."""
    return int(checkpoint.name.rpartition("-")[2])


class TrainingState(TrainerCallback):
    """Saves and restores optimizer, scheduler and random state. Must be the last callback.

    Args:
        resume_from: the checkpoint to continue from, or None.
        scaler: returns the fp16 gradient scaler, or None where there is none.
        launch: what this command was started for.
        keep: how many checkpoints stay; None: all. Trainer removes them file by file: half of one,
            seen after a crash, could not be told from a whole one.
    """

    def __init__(
        self,
        resume_from: Path | None,
        scaler: Any = lambda: None,
        *,
        launch: Launch,
        keep: int | None = 2,
    ) -> None:
        self.keep = keep
        self.launch = launch
        self.resume_from = resume_from
        self.scaler = scaler
        self._random_pending = resume_from is not None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore optimizer and scheduler after Trainer has made them."""
        if self.resume_from is None:
            return
        optimizer, written = kwargs["optimizer"], _load_tree(self._written(self.resume_from))
        if self.launch.zero:
            zero.load_optimizer_state(kwargs["model"], optimizer, written)
        else:
            optimizer.load_state_dict(scattered(written, optimizer))
        extra = json.loads(self._written(self.resume_from, "scheduler", ".json").read_text())
        kwargs["lr_scheduler"].load_state_dict(extra["scheduler"])
        if self.scaler() is not None:
            self.scaler().load_state_dict(extra["scaler"])

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the random state of a checkpoint taken at the end of an epoch.

        Starting to read the data draws a random number: at an epoch's end that is still to come.
        """
        if state.epoch == int(state.epoch):
            self._restore_random_state()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the random state of another checkpoint, after the data were fast-forwarded."""
        self._restore_random_state()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Complete the checkpoint Trainer has just written."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        if self.launch.zero:
            optimizer = zero.optimizer_state(kwargs["optimizer"])
        else:
            optimizer = gathered(kwargs["optimizer"].state_dict())
        if not self.launch.fsdp or state.is_world_process_zero:
            _save_tree(optimizer, self._rank_file(folder))
        _save_tree(_random_state(), self._rank_file(folder, "random"))
        scaler = self.scaler()
        extra = {
            "scheduler": kwargs["lr_scheduler"].state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        self._rank_file(folder, "scheduler", ".json").write_text(json.dumps(extra))
        processes = PartialState()
        processes.wait_for_everyone()
        if processes.is_main_process:
            (folder / "training_args.bin").unlink(missing_ok=True)
            sync_tree(folder)
            journal = Path(args.output_dir).parent / "journal.jsonl"
            if journal.is_file():  # the steps before a checkpoint are not taken, nor told, again
                sync_file(journal)
            files = {name: s for name, s in checksums(folder).items() if name != COMPLETE}
            record = {
                "schema": 2,
                "step": state.global_step,
                "files": files,
                **steps_of(args, self.launch),
            }
            write_sealed(folder / COMPLETE, record)
            self._forget_older(folder)
        processes.wait_for_everyone()

    def _forget_older(self, newest: Path) -> None:
        """Remove all checkpoints but the newest ones, each as a whole."""
        found = [path for path in newest.parent.glob("checkpoint-*") if path.is_dir()]
        for path in sorted(found, key=checkpoint_step)[: -self.keep] if self.keep else ():
            discard(path)

    def _restore_random_state(self) -> None:
        if self._random_pending:
            assert self.resume_from is not None
            _set_random_state(_load_tree(self._written(self.resume_from, "random")))
            self._random_pending = False

    def _rank_file(
        self, folder: Path, name: str = "optimizer", suffix: str = ".safetensors"
    ) -> Path:
        return folder / f"{name}-rank{PartialState().process_index}{suffix}"

    def _written(self, folder: Path, name: str = "optimizer", suffix: str = ".safetensors") -> Path:
        """Return this process's file, or another's where fewer wrote: they hold the same."""
        ranks = len(list(folder.glob(f"{name}-rank*{suffix}")))
        return folder / f"{name}-rank{PartialState().process_index % ranks}{suffix}"


def _random_state() -> dict[str, Any]:
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def _save_tree(tree: Any, path: Path) -> None:
    """Write nested dicts and lists: tensors as safetensors, the rest as JSON in its header."""
    tensors: dict[str, torch.Tensor] = {}

    def strip(node: Any) -> Any:
        if isinstance(node, torch.Tensor):
            key = f"t{len(tensors)}"
            tensors[key] = node.detach().cpu().contiguous().clone()
            return {"tensor": key}
        if isinstance(node, dict):
            return {"items": [[strip(key), strip(value)] for key, value in node.items()]}
        if isinstance(node, (list, tuple)):
            return [strip(item) for item in node]
        return node

    save_file(tensors, path, metadata={"tree": json.dumps(strip(tree))})


def _load_tree(path: Path) -> Any:
    """Read what ``_save_tree`` wrote; dict keys keep their type, tuples become lists."""
    from safetensors import safe_open

    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        tree = json.loads(file.metadata()["tree"])

    def fill(node: Any) -> Any:
        if isinstance(node, list):
            return [fill(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "tensor" in node:
            return tensors[node["tensor"]]
        return {fill(key): fill(value) for key, value in node["items"]}

    return fill(tree)
