"""What was asked for is in force, or it is an error."""

from typing import Any

from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from lcia.distributed.launch import Launch
from lcia.errors import ConfigError

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
