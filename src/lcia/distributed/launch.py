"""Join the processes a launcher started, once, and know what was asked for.

What processes other than the main one print goes into a file each, not on the terminal.
"""

import atexit
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, broadcast_object_list

from lcia.distributed import zero
from lcia.distributed.channel import LAST_WORDS, Channel, say
from lcia.errors import ConfigError

TIMEOUT_S = 1800
"""transformers' default of ``training.ddp_timeout``."""

JOINING = ("ddp_backend", "ddp_timeout", "use_cpu")
"""Settings of training that matter to processes which only answer: each holds the whole model."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a launcher and the settings ask for.

    Attributes:
        processes: how many the launcher started.
        rank: of this one.
        cpu: whether models are trained on the CPU.
        zero: the stage of DeepSpeed's ZeRO that is asked for; 0 for none.
        fsdp: whether FSDP2 is.
        timeout_s: longest wait in a collective.
        backend: of the process group; None: as the device wants.
    """

    processes: int
    rank: int
    cpu: bool
    zero: int
    fsdp: bool
    timeout_s: float
    backend: str | None

    @property
    def sharding(self) -> str | None:
        """What spreads over processes what, by its usual name; None for nothing."""
        if self.zero:
            return f"ZeRO-{self.zero}"
        return "FSDP2" if self.fsdp else "DDP" if self.processes > 1 else None

    @property
    def spreads(self) -> bool:
        """Whether a process holds a part of the parameters or of the optimizer's state only."""
        return self.fsdp or self.zero > 0


def launch_of(training: Mapping[str, Any]) -> Launch:
    """Return what this process was started for.

    Args:
        training: ``transformers.TrainingArguments``.

    Raises:
        ConfigError: the launcher started fewer processes than it was told to, or one where the
            model is to be spread over several.
    """
    cpu = bool(training.get("use_cpu")) or _says("ACCELERATE_USE_CPU")
    launch = Launch(
        processes=int(os.environ.get("WORLD_SIZE", 1)),
        rank=int(os.environ.get("RANK", 0)),
        cpu=cpu or not torch.accelerator.is_available(),
        zero=_zero_stage(training.get("deepspeed")),
        fsdp=bool(training.get("fsdp")),
        timeout_s=float(training.get("ddp_timeout") or TIMEOUT_S),
        backend=training.get("ddp_backend"),
    )
    if launch.processes == 1:
        _check_alone()
    _check_sharding(launch)
    return launch


def start(training: Mapping[str, Any]) -> Channel | None:
    """Join the other processes, if a launcher started several; calls after the first do nothing.

    The process group gets ``training.ddp_timeout``, and every process knows its rank whatever
    the device: torchrun alone does not say that a CPU is meant.

    Args:
        training: ``transformers.TrainingArguments``.

    Returns:
        The channel to the others; None for one process.

    Raises:
        ConfigError: what is asked for cannot be had.
    """
    launch = launch_of(training)
    if launch.processes == 1:
        return None
    make_state(launch)
    if not _JOINED:
        channel = Channel.open(
            launch.rank,
            launch.processes,
            host=os.environ.get("MASTER_ADDR", "localhost"),
            spread=broadcast_object_list,
        )
        atexit.register(_part, channel)
        _JOINED.append((launch, channel))
    return _JOINED[0][1]


def joined() -> Channel | None:
    """Return the channel to the other processes; None for one process, or before ``start``."""
    return _JOINED[0][1] if _JOINED else None


def state() -> PartialState:
    """Return accelerate's state of this process among the others, in force."""
    if _JOINED:
        make_state(_JOINED[0][0])
    return PartialState()


def make_state(launch: Launch) -> None:
    """Make accelerate's state of processes what the launcher started.

    Every ``TrainingArguments`` makes it anew, and without a word about the CPU it makes each rank
    the only one there.
    """
    if PartialState._shared_state:
        known = PartialState()
        is_zero = known.distributed_type == DistributedType.DEEPSPEED
        if known.num_processes == launch.processes and is_zero == (launch.zero > 0):
            return
    PartialState._reset_state()
    options: dict[str, Any] = {"timeout": timedelta(seconds=launch.timeout_s)}
    if launch.backend is not None:
        options["backend"] = launch.backend
    if launch.zero:
        options.setdefault("backend", "gloo" if launch.cpu else None)
        with zero.asked_for(cpu=launch.cpu):
            PartialState(**options)
        return
    if launch.cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"  # for every TrainingArguments from here on
    PartialState(cpu=launch.cpu, **options)


_JOINED: list[tuple[Launch, Channel]] = []
"""What this process was started for, and its channel: one entry once ``start`` has joined."""


def _part(channel: Channel) -> None:
    """Say goodbye at a good end; an exception that nobody caught is none."""
    if not hasattr(sys, "last_value"):
        channel.close()


def _says(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("1", "true", "yes", "on", "y", "t")


def _check_alone() -> None:
    """Refuse to be the only process where several were asked for."""
    wanted = asked_of_accelerate()
    if wanted > 1:
        raise ConfigError(
            f"accelerate launch: {wanted} processes are asked for, and it started one, as it does "
            f"with --cpu. Start them with: torchrun --nproc_per_node {wanted} -m lcia ..."
        )


def _zero_stage(config: Any) -> int:
    """Return the stage of ZeRO in a configuration; 0 where there is none that can be."""
    zero = config.get("zero_optimization") if isinstance(config, Mapping) else None
    stage = zero.get("stage") if isinstance(zero, Mapping) else None
    return stage if isinstance(stage, int) and stage in (1, 2, 3) else 0


def _check_sharding(launch: Launch) -> None:
    """Refuse to shard over one process, and what only accelerate's launcher knows of."""
    key = "training.deepspeed" if launch.zero else "training.fsdp"
    if launch.spreads and launch.processes == 1:
        raise ConfigError(
            f"{key}: {launch.sharding} spreads a model over processes, and this is one. Start "
            "several: torchrun --nproc_per_node 2 -m lcia ..., or remove it."
        )
    if launch.zero and launch.cpu and torch.accelerator.is_available():
        raise ConfigError(
            "training.use_cpu: DeepSpeed takes the GPU that is there. Hide it with "
            "CUDA_VISIBLE_DEVICES='', or remove training.deepspeed."
        )
    for name, key in (("FSDP", "training.fsdp"), ("DEEPSPEED", "training.deepspeed")):
        if not _JOINED and _says(f"ACCELERATE_USE_{name}"):
            raise ConfigError(
                f"accelerate launch: its configuration asks for {name}, and lcia reads {key}. Say "
                "it there, and start with torchrun, or with an accelerate configuration of "
                "distributed_type MULTI_GPU."
            )


def asked_of_accelerate() -> int:
    """Return how many processes ``accelerate launch`` was told to start; 1 under no such parent.

    With ``--cpu`` it starts one and says so nowhere: only its own command line and configuration
    file know.
    """
    import psutil
    from accelerate.commands.config import load_config_from_file

    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return 1
    names = [os.path.basename(word) for word in words[:4]]
    if "launch" not in words or not {"accelerate", "accelerate.commands.accelerate_cli"} & {
        *names,
        *words,
    }:
        return 1
    options = dict(_options(words[words.index("launch") + 1 :]))
    if "num_processes" in options:
        return int(options["num_processes"])
    from accelerate.commands.config.config_args import default_config_file

    file = options.get("config_file")
    if file is None and not os.path.isfile(default_config_file):
        return 1
    return int(load_config_from_file(file).num_processes)


def _options(words: list[str]) -> list[tuple[str, str]]:
    """Return name and value of the options of ``accelerate launch``, up to the script."""
    found = []
    for word, after in zip(words, [*words[1:], ""], strict=True):
        name, sign, value = word.partition("=")
        if name.startswith("-"):
            found.append((name.lstrip("-").replace("-", "_"), value if sign else after))
    return found


LOG = "process-{rank}.log"
"""Name of a process's file in the folder of logs."""

UNJOINED_S = 12.0
"""How long an error from before the processes joined waits for the main process to print it."""


def hold_output() -> None:
    """Keep what this process prints off the terminal, if another one is the main process.

    ``keep_output`` says later where it goes; until then it lies in a temporary file.
    """
    if int(os.environ.get("RANK", 0)) == 0 or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return
    sys.stderr.flush()
    LAST_WORDS.append(os.dup(2))
    with tempfile.TemporaryFile() as file:
        _send_output(file.fileno())


def join(training: Mapping[str, Any], *, logs: Path) -> None:
    """Join the other processes, as ``start`` does; all but the main one print into files.

    Args:
        training: ``transformers.TrainingArguments``.
        logs: the folder of these files.

    Raises:
        ConfigError: as ``start``.
    """
    start(training)
    keep_output(logs)


def logs_beside(store: Path) -> Path:
    """Return the folder of logs of processes that work on an assistant."""
    root = store.resolve()
    return root.with_name(f"{root.name}-logs")


def keep_output(folder: Path) -> None:
    """Write what this process prints into a file in ``folder``, if ``hold_output`` holds it back.

    Args:
        folder: made if there is none; on every machine of the run.
    """
    channel = joined()
    if channel is not None:
        channel.logs = str(folder / LOG)
    if not LAST_WORDS:
        return
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    with (folder / LOG.format(rank=os.environ["RANK"])).open("ab") as file:
        held = os.dup(1)
        os.lseek(held, 0, os.SEEK_SET)
        while block := os.read(held, 1 << 16):
            file.write(block)
        os.close(held)
        file.flush()
        _send_output(file.fileno())


def after_main(message: str) -> None:
    """Print an error from before the processes joined, unless the main one has the same.

    If it has, its launcher ends this process meanwhile.
    """
    if LAST_WORDS:
        time.sleep(UNJOINED_S)
        say(f"Process {os.environ['RANK']}: {message}")


def _send_output(descriptor: int) -> None:
    for standard in (1, 2):
        os.dup2(descriptor, standard)
