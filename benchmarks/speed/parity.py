"""Dynamic EMA on two processes against one process with the same global batch.

Every parallel setting trains a small network for 20 steps on the same data; its averages are
compared with those of a single process. tests/distributed requires what this measures.

    python -m benchmarks.speed.parity ddp fsdp2 zero0 zero1 zero2 zero3
"""

import argparse
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lcia.ema import DynamicEMA

SETTINGS = ("ddp", "fsdp2", "zero0", "zero1", "zero2", "zero3")
RULES = ("paper", "release", "curvature")
STEPS = 20
LEARNING_RATE = 0.05


def network(dtype: torch.dtype) -> nn.Module:
    """A network whose tensors split unevenly on two ranks: 3 rows into 2 + 1, 1 into 1 + 0."""
    torch.manual_seed(0)
    layers = [nn.Linear(6, 3, bias=False), nn.Tanh(), nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)]
    return nn.Sequential(*layers).to(dtype)


def batches(dtype: torch.dtype) -> list[Tensor]:
    """Global batches of 8 inputs."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 6, generator=generator).to(dtype) for _ in range(STEPS)]


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    """A loss steep enough that the closed forms apply on part of the steps."""
    return 40 * (model(batch).squeeze(-1) - batch.sum(dim=1)).pow(2).mean()


class Plain:
    """One process, or one rank of DDP or FSDP2."""

    def __init__(self, setting: str, *, rule: str, dtype: torch.dtype, state: Any = None) -> None:
        model = network(dtype)
        if state:
            model.load_state_dict(state["model"])
        if setting == "fsdp2":
            for layer in model:
                if isinstance(layer, nn.Linear):
                    torch.distributed.fsdp.fully_shard(layer)
            torch.distributed.fsdp.fully_shard(model)
        self.model = model
        self.forward = model
        if setting == "ddp":  # gradients inside buckets that DDP reuses, the harder case
            self.forward = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        self.share = slice(None) if setting == "single" else slice(dist.get_rank(), None, 2)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE / 40)
        self.ema = DynamicEMA(model.named_parameters(), rule=rule)
        if state:
            self.ema.load_state_dict(state["ema"])
        self.after_step: Callable[[], None] = self.ema.update

    def step(self, batch: Tensor) -> None:
        """Take one optimizer step on this rank's share of a global batch."""
        loss_of(self.forward, batch[self.share]).backward()
        self.optimizer.step()
        self.after_step()
        self.optimizer.zero_grad()

    def parameters(self) -> dict[str, Tensor]:
        """Return the whole parameters, the same on every rank."""
        return self.state()["model"]

    def state(self) -> dict[str, Any]:
        """Return model and average as full tensors, the same on every rank."""
        model = self.model.state_dict()
        whole = {n: v.full_tensor() if hasattr(v, "full_tensor") else v for n, v in model.items()}
        return _cloned({"model": whole, "ema": self.ema.state_dict()})


class Zero:
    """One rank of DeepSpeed ZeRO."""

    def __init__(self, setting: str, *, rule: str, dtype: torch.dtype, state: Any = None) -> None:
        import deepspeed

        from lcia.integrations.deepspeed import DeepSpeedEMA

        model = network(dtype)
        if state:
            model.load_state_dict(state["model"])
        config = {
            "train_batch_size": 8,
            "gradient_clipping": 0.0,
            "zero_optimization": {"stage": int(setting[-1])},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE / 40)
        self.engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        self.model = self.engine.module
        self.ema = DeepSpeedEMA(self.model, self.engine.optimizer, rule=rule)
        if state:
            self.ema.load_state_dict(state["ema"])
        self.after_step: Callable[[], None] = self.ema.update

    def step(self, batch: Tensor) -> None:
        """Take one optimizer step on this rank's share of a global batch."""
        self.engine.backward(loss_of(self.engine, batch[dist.get_rank() :: 2]))
        self.engine.step()
        self.after_step()

    def parameters(self) -> dict[str, Tensor]:
        """Return the whole parameters as the model sees them."""
        import deepspeed

        out = {}
        for name, parameter in self.model.named_parameters():
            with deepspeed.zero.GatheredParameters(
                [parameter], enabled=hasattr(parameter, "ds_id")
            ):
                out[name] = parameter.detach().clone()
        return out

    def state(self) -> dict[str, Any]:
        """Return model and average as full tensors, the same on every rank."""
        return _cloned({"model": self.parameters(), "ema": self.ema.state_dict()})


def averages(run: Plain | Zero) -> dict[str, Tensor]:
    """Return the whole averages."""
    return _cloned(run.ema.state_dict()["shadow"])


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Return the largest difference over tensors, relative to each tensor's largest value."""
    return max(float((a[n] - b[n]).abs().max() / b[n].abs().max()) for n in b)


def start(setting: str, *, rule: str, dtype: torch.dtype, state: Any = None) -> Plain | Zero:
    """Return a run at its start, or where a ``state()`` left it."""
    kind = Zero if setting.startswith("zero") else Plain
    return kind(setting, rule=rule, dtype=dtype, state=state)


def take(run: Plain | Zero, batches: list[Tensor]) -> Plain | Zero:
    """Take a step on each batch."""
    for batch in batches:
        run.step(batch)
    return run


def compare(setting: str, *, rule: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return how far a setting's averages are from a single process's, and how they continue."""
    data, how = batches(dtype), {"rule": rule, "dtype": dtype}
    single, parallel = (take(start(s, **how), data) for s in ("single", setting))
    whole = averages(parallel)
    cell: dict[str, Any] = {
        "difference": difference(whole, averages(single)),
        "closed_form": parallel.ema.stats().counts["closed_form"],
        "same_decisions": parallel.ema.stats().counts == single.ema.stats().counts,
    }
    half = take(start(setting, **how), data[: STEPS // 2]).state()
    for other in (setting, "single", "ddp" if setting == "fsdp2" else "fsdp2"):
        resumed = take(start(other, **how, state=half), data[STEPS // 2 :])
        key = "resumed_here" if other == setting else f"resumed_on_{other}"
        cell[key] = difference(averages(resumed), whole)
    parallel.ema.copy_to_parameters()
    cell["propagated"] = difference(parallel.parameters(), averages(single))
    return cell


def missing(setting: str) -> str | None:
    """Return why a setting cannot run here, if it cannot."""
    if setting.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        return "deepspeed is not installed (pip install lcia[deepspeed])"
    return None


def compare_all(settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return setting -> rule/dtype -> figures; every rank calls it."""
    return {
        setting: {
            f"{rule}/{str(dtype)[6:]}": compare(setting, rule=rule, dtype=dtype)
            for dtype in dtypes(setting)
            for rule in RULES
        }
        for setting in settings
    }


def dtypes(setting: str) -> list[torch.dtype]:
    """Return what a setting is compared in; DeepSpeed steps float32 only."""
    return [torch.float32] if setting.startswith("zero") else [torch.float32, torch.float64]


def on_two_processes(work: Callable[[Sequence[str]], Any], settings: Sequence[str]) -> Any:
    """Call ``work(settings)`` on two gloo processes, one thread each; return rank 0's JSON."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        torch.multiprocessing.spawn(_rank, args=(work, list(settings), out), nprocs=2)
        return json.loads(out.read_text(encoding="utf-8"))


def join(rank: int, meeting: Path) -> None:
    """Make this process one of two that meet at a file: a port could be taken meanwhile."""
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    sizes = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {**ranks, **sizes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=2)


def _rank(rank: int, work: Callable[..., Any], settings: list[str], out: Path) -> None:
    join(rank, out.with_name("meeting"))
    if any(setting.startswith("zero") for setting in settings):
        _start_deepspeed()
    result = work(settings)
    if rank == 0:
        out.write_text(json.dumps(result), encoding="utf-8")
    dist.destroy_process_group()


def _start_deepspeed() -> None:
    import deepspeed

    # Its shared-memory collectives are compiled at first use, for minutes; gloo's serve here.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo")


def _cloned(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _cloned(value) for key, value in tree.items()}
    return tree.detach().clone()


def main() -> None:
    """Print the parity table as JSON, or write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("settings", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    table = json.dumps(on_two_processes(compare_all, asked.settings), indent=1)
    if asked.out:
        asked.out.write_text(table, encoding="utf-8")
    else:
        print(table)


if __name__ == "__main__":
    main()
