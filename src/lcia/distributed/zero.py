"""DeepSpeed's ZeRO: joining processes for it, and what its checkpoints need; nothing pickled.

Each process writes its own partitions: the flat float32 values that its optimizer steps, and the
optimizer's state of them. They go on to the bit on as many processes.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import Tensor

from lcia.integrations.deepspeed import ZeroShards, torch_optimizer

ASKED = "ACCELERATE_USE_DEEPSPEED"


@contextmanager
def asked_for(*, cpu: bool) -> Iterator[None]:
    """Let accelerate's state of processes be one of DeepSpeed.

    Args:
        cpu: whether models are trained on the CPU, of which accelerate must not know: it drops
            DeepSpeed there without a word.
    """
    if cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        os.environ.pop("ACCELERATE_USE_CPU", None)
    import deepspeed

    if cpu:
        # Its collectives in shared memory would be compiled at first use, for minutes.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ[ASKED] = "true"
    try:
        yield
    finally:
        os.environ.pop(ASKED)


def start_anew(joined: Any) -> None:
    """Let accelerate prepare another model: a process has one configuration of DeepSpeed.

    Args:
        joined: accelerate's state of processes, in force.
    """
    assert joined.distributed_type == DistributedType.DEEPSPEED
    AcceleratorState._reset_state()


def forget(engine: Any) -> None:
    """Take DeepSpeed off a model that was trained.

    Models loaded from here on are whole: under stage 3 transformers would spread them, too, which
    is a collective, and hangs where one process alone loads one.
    """
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    os.environ.pop(ASKED, None)
    engine.destroy()


def whole_parameters(model: Any, optimizer: Any) -> dict[str, Tensor]:
    """Return the trained parameters in float32, gathered on each process: a collective."""
    shards = ZeroShards(model, optimizer)
    shards.detach()
    return {name: shards.full(f.detach(), like=f).cpu() for name, f in shards.fragments.items()}


def optimizer_state(optimizer: Any) -> dict[str, Any]:
    """Return what a process steps, as tensors and plain values.

    Args:
        optimizer: what ``accelerator.prepare`` returned.
    """
    zero = getattr(optimizer, "optimizer", optimizer)
    inner, flats = torch_optimizer(zero), _partitions(zero)
    scaler = vars(zero.loss_scaler) if hasattr(zero, "loss_scaler") else {}
    return {
        "partitions": [flat.detach() for flat in flats],
        "state": [dict(inner.state.get(flat, {})) for flat in flats],
        "groups": [_without_parameters(group) for group in inner.param_groups],
        "loss_scaler": {k: v for k, v in scaler.items() if isinstance(v, (bool, int, float))},
    }


@torch.no_grad()
def load_optimizer_state(model: Any, optimizer: Any, state: Mapping[str, Any]) -> None:
    """Bring an optimizer and the model's parameters to what ``optimizer_state`` returned."""
    zero = getattr(optimizer, "optimizer", optimizer)
    inner = torch_optimizer(zero)
    for group, written in zip(inner.param_groups, state["groups"], strict=True):
        group.update(written)
    on_device = any(g.get("fused") or g.get("capturable") for g in inner.param_groups)
    for flat, values, own in zip(
        _partitions(zero), state["partitions"], state["state"], strict=True
    ):
        flat.copy_(values)
        inner.state[flat] = {
            key: v.to(flat.device) if isinstance(v, Tensor) and (v.ndim or on_device) else v
            for key, v in own.items()
        }
    for key, value in state["loss_scaler"].items():
        setattr(zero.loss_scaler, key, value)
    shards = ZeroShards(model, optimizer)
    shards.detach()
    shards.propagate()


def _partitions(zero: Any) -> list[Tensor]:
    """Return the flat tensors that a ZeRO optimizer steps on this process, in a fixed order."""
    stage3 = getattr(zero, "fp32_partitioned_groups_flat", None)
    return list(zero.single_partition_of_fp32_groups if stage3 is None else stage3)


def _without_parameters(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a parameter group's settings; those of ``load_state_dict`` are all plain values."""
    return {key: value for key, value in group.items() if key != "params"}
