"""A task's steps on any number of processes, and whether what was asked for is in force.

A checkpoint says how many processes took its steps, how many samples a step had, and what was
spread. On another number, batches and accumulation change so that every step has the same
samples; where that cannot be, going on is refused.

Where samples are no multiple of batch and processes, accelerate repeats some in an epoch's last
step, which then count twice in the gradient and in a method's precision. Here the batches are
filled up with a blank example that has no label: the loss is a sum over answer tokens, so it weighs
nothing, and every process still takes part in every step.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, DataLoader, Dataset

from lcia.distributed.launch import Launch
from lcia.errors import ConfigError
from lcia.files import read_sealed
from lcia.models.batches import IGNORED

logger = logging.getLogger(__name__)

COMPLETE = "complete.json"


def same_steps(
    checkpoint: Path | None, settings: Mapping[str, Any], launch: Launch
) -> dict[str, int]:
    """Return the batch settings under which training goes on with the steps it was begun with.

    Args:
        checkpoint: what training goes on from; None for a new training.
        settings: ``per_device_train_batch_size`` and ``gradient_accumulation_steps``.
        launch: what this command was started for.

    Returns:
        The two settings, where they change; then the result equals the uninterrupted one within
        rounding, not to the bit.

    Raises:
        ConfigError: the steps cannot be the same, or the optimizer's state cannot be read.
    """
    if checkpoint is None:
        return {}
    begun = read_sealed(checkpoint / COMPLETE)
    processes = begun.get("processes") or len(list(checkpoint.glob("optimizer-rank*.safetensors")))
    if processes == launch.processes:
        return {}
    now = _number(launch.processes)
    there = f"{checkpoint}: was written by {_number(processes)}, and this is {now}"
    remedy = (
        f"Run it on {processes} again (torchrun --nproc_per_node {processes} -m lcia ...), or "
        f"delete {checkpoint.parent} to train the task anew."
    )
    samples = begun.get("samples_per_step")
    kinds = (str(begun.get("sharding")), str(launch.sharding))
    spread = {kind for kind in kinds if kind.startswith("ZeRO")}
    if spread or samples is None:
        what = f"{', '.join(sorted(spread))} keeps a part of the optimizer's state on each process"
        raise ConfigError(f"{there}; {what if spread else 'it does not say its batches'}. {remedy}")
    size = int(settings.get("per_device_train_batch_size", 8))
    for smaller in range(size, 0, -1):
        if samples % (smaller * launch.processes) == 0:
            steps = samples // (smaller * launch.processes)
            logger.warning(
                "%s; each step keeps its %d samples: batches of %d on each, %d accumulated. The "
                "result equals the uninterrupted one within rounding, not to the bit.",
                there,
                samples,
                smaller,
                steps,
            )
            return {"per_device_train_batch_size": smaller, "gradient_accumulation_steps": steps}
    raise ConfigError(
        f"{there}; the {samples} samples of a step are no multiple of {launch.processes}. {remedy}"
    )


def steps_of(args: Any, launch: Launch) -> dict[str, Any]:
    """Return what a checkpoint says of its steps, for ``same_steps``.

    Args:
        args: ``TrainingArguments`` in force.
        launch: what this command was started for.
    """
    size = args.per_device_train_batch_size * args.gradient_accumulation_steps
    return {
        "processes": args.world_size,
        "samples_per_step": size * args.world_size,
        "sharding": launch.sharding,
    }


def _number(processes: int) -> str:
    return "one process" if processes == 1 else f"{processes} processes"


REMEDY = "Unset accelerate's environment variables, or start with torchrun."


def check_in_force(trainer: Any, launch: Launch) -> None:
    """Compare what a launcher and the settings ask for with what a Trainer does.

    accelerate trains each process alone where it does not know of the others.

    Args:
        trainer: with its accelerator made.
        launch: what was asked for.

    Raises:
        ConfigError: something asked for is not in force.
    """
    accelerator = trainer.accelerator
    kind = accelerator.distributed_type
    if accelerator.num_processes != launch.processes:
        raise ConfigError(
            f"training: the launcher started {launch.processes} processes, and "
            f"{accelerator.num_processes} train together. Unset ACCELERATE_USE_CPU and "
            "training.use_cpu, or set both."
        )
    plain = (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if launch.processes > 1 and kind not in (
        (DistributedType.DEEPSPEED,) if launch.zero else plain
    ):
        raise ConfigError(
            f"training: {launch.processes} processes are to train under {launch.sharding}, and "
            f"accelerate is set up for {kind.value}. {REMEDY}"
        )
    asked = "bf16" if trainer.args.bf16 else "fp16" if trainer.args.fp16 else "no"
    if launch.processes > 1 and accelerator.mixed_precision != asked:
        raise ConfigError(
            f"training: mixed precision {asked} is asked for, and in force is "
            f"{accelerator.mixed_precision}. Say the same in dtype and training."
        )


def check_wrapped(wrapped: Any, launch: Launch) -> None:
    """Compare what is asked for with what a model is wrapped in, once it is ready to train.

    Args:
        wrapped: what Trainer calls for a step.
        launch: what was asked for.

    Raises:
        ConfigError: something else is in force.
    """
    found = in_force(wrapped)
    if found != launch.sharding:
        raise ConfigError(
            f"training: {launch.sharding or 'one process'} is asked for, and in force is "
            f"{found or 'one process alone'}. {REMEDY}"
        )


def in_force(wrapped: Any) -> str | None:
    """Return what spreads a model, by the names of ``Launch.sharding``, from the model itself."""
    if isinstance(wrapped, DistributedDataParallel):
        return "DDP"
    if hasattr(wrapped, "zero_optimization_stage"):
        return f"ZeRO-{wrapped.zero_optimization_stage()}"
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    return "FSDP2" if trained and all(isinstance(p, DTensor) for p in trained) else None


class Blank(NamedTuple):
    """An example that fills up a batch and has no label."""

    example: Any


class Examples(Dataset[Any]):
    """Encoded examples; the index behind the last one is the blank.

    Args:
        examples: what the chat format encoded; the one with the shortest answer is the blank.
    """

    def __init__(self, examples: Sequence[Any]) -> None:
        self.examples = examples
        each = (examples[i] for i in range(len(examples)))
        self.blank = Blank(min(each, key=lambda example: len(example.answer_ids)))

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> Any:
        return self.blank if i == len(self.examples) else self.examples[i]


class Collate:
    """Makes batches as another function does, without labels in the rows of blanks."""

    def __init__(self, collate: Callable[[Sequence[Any]], dict[str, Any]]) -> None:
        self._collate = collate

    def __call__(self, examples: Sequence[Any]) -> dict[str, Any]:
        """Return the batch of examples, blanks among them."""
        real = [e.example if isinstance(e, Blank) else e for e in examples]
        batch = self._collate(real)
        for row, example in enumerate(examples):
            if isinstance(example, Blank):
                batch["labels"][row] = IGNORED
        return batch


class FilledBatches(BatchSampler):
    """Batches of indices, all full and as many on every process.

    Args:
        batches: one process's batches; the last may be short.
        blank: the index that fills up.
        processes: the number of batches becomes a multiple of it.
    """

    def __init__(self, batches: Any, *, blank: int, processes: int) -> None:
        self.sampler = batches.sampler
        self.batch_size, self.drop_last = batches.batch_size, batches.drop_last
        self._batches, self._blank, self._processes = batches, blank, processes

    def __len__(self) -> int:
        return -(-len(self._batches) // self._processes) * self._processes

    def __iter__(self) -> Iterator[list[int]]:
        empty = [self._blank] * self.batch_size
        for batch in self._batches:
            yield [*batch, *empty][: self.batch_size]
        yield from [empty] * (len(self) - len(self._batches))


def fill_batches(loader: DataLoader[Any], *, processes: int) -> None:
    """Make every process's last batches full with blanks, in a loader accelerate prepared.

    Args:
        loader: of ``Examples``.
        processes: that share it; more than one.
    """
    examples = loader.dataset
    assert isinstance(examples, Examples)
    shard: Any = loader.batch_sampler
    if not shard.drop_last:
        shard.batch_sampler = FilledBatches(
            shard.batch_sampler, blank=len(examples), processes=processes
        )
