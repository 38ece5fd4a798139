"""What was asked for is in force, or it is an error."""

from typing import Any

from accelerate.utils import DistributedType

from lcia.distributed.launch import Launch
from lcia.errors import ConfigError


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
    if launch.processes > 1 and kind not in (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise ConfigError(
            f"training: {launch.processes} processes are to train under DDP, and in force is "
            f"{kind.value}. Unset accelerate's environment variables, or start with torchrun."
        )
    asked = "bf16" if trainer.args.bf16 else "fp16" if trainer.args.fp16 else "no"
    if launch.processes > 1 and accelerator.mixed_precision != asked:
        raise ConfigError(
            f"training: mixed precision {asked} is asked for, and in force is "
            f"{accelerator.mixed_precision}. Say the same in dtype and training."
        )
