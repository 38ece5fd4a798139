"""What one dynamic EMA update costs, against the formula as a loop, torch's average and memory.

    python -m benchmarks.speed.ema                        # prints tables, kept as ema
    python -m benchmarks.speed.ema --only memory parity   # what other load does not disturb

Interleaved repetitions in one process, medians. The bound is the time the bytes that an update
must move take at the best copy bandwidth of the same run; for rule ``release`` it reads
theta, theta*, g and g_prev and writes theta*.
"""

import argparse
import copy
import gc
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.measured import keep, kept
from benchmarks.speed.parity import SETTINGS, compare_all, missing, on_two_processes
from lcia.ema import DynamicEMA

REPETITIONS = {"a": 15, "b": 5}
STREAMS = {
    "release": 5,
    "paper": 7,
}  # arrays read or written; paper also reads and writes theta_prev


def shape_a() -> list[tuple[int, int]]:
    """LoRA r=8 on all linear layers of SmolLM2-135M: 420 tensors, 2.4 M."""
    linears = [(576, 576), (192, 576), (192, 576), (576, 576)]
    linears += [(1536, 576), (1536, 576), (576, 1536)]
    return _lora(linears, layers=30, rank=8)


def shape_b() -> list[tuple[int, int]]:
    """LoRA r=128 on all linear layers of a LLaVA-1.5-7B-shaped Llama: 448 tensors, 320 M."""
    linears = [(4096, 4096)] * 4 + [(11008, 4096), (11008, 4096), (4096, 11008)]
    return _lora(linears, layers=32, rank=128)


def _lora(linears: list[tuple[int, int]], *, layers: int, rank: int) -> list[tuple[int, int]]:
    factors = [shape for out, into in linears for shape in ((rank, into), (out, rank))]
    return factors * layers


class Tensors(nn.Module):
    """Parameters of given shapes and two sets of gradients to take turns with."""

    def __init__(self, shapes: list[tuple[int, int]], device: str) -> None:
        super().__init__()
        make = lambda shape: torch.randn(shape, device=device).mul_(0.01)  # noqa: E731
        self.weights = nn.ParameterList(nn.Parameter(make(shape)) for shape in shapes)
        self._grads = [[make(shape) for shape in shapes] for _ in range(2)]
        self._turn = 0

    def renew_gradients(self) -> None:
        """Give every parameter a gradient in a tensor of its own, as a backward pass does."""
        self._turn = 1 - self._turn
        for weight, grad in zip(self.weights, self._grads[self._turn], strict=True):
            weight.grad = grad.detach()


class PlainLoop:
    """Rule release written straight from the formula, one tensor at a time."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = list(model.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        self.grad_prev: list[Tensor | None] = [None] * len(self.parameters)

    @torch.no_grad()
    def update(self) -> None:
        """Three norms, one host read, an out-of-place average and a deep copy of the gradient."""
        for i, parameter in enumerate(self.parameters):
            grad, prev, gain = parameter.grad, self.grad_prev[i], 0.01
            if prev is not None:
                drift = torch.norm(parameter - self.average[i], p=1)
                change = torch.norm(grad - prev, p=1)
                closed = (2 * (1 + torch.norm(grad, p=1)) / (drift * change)).item()
                gain = closed if 0 < closed < 1 else gain
            self.average[i] = (1 - gain) * self.average[i] + gain * parameter.detach()
            self.grad_prev[i] = copy.deepcopy(grad)


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: str) -> float:
    """Return how long one call takes."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def measure(shape: str, device: str) -> dict[str, float]:
    """Return medians in milliseconds, and multiples of the bound, for one set of shapes."""
    model = Tensors(shape_a() if shape == "a" else shape_b(), device)
    numel = sum(p.numel() for p in model.parameters())
    source, target = torch.randn(numel, device=device), torch.empty(numel, device=device)
    loop = PlainLoop(model)
    averaged = AveragedModel(model.weights, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    contenders: dict[str, Callable[[], object]] = {
        "copy": lambda: target.copy_(source),
        "plain_loop": loop.update,
        "averaged_model": lambda: averaged.update_parameters(model.weights),
    }
    for rule in STREAMS:
        contenders[rule] = DynamicEMA(model.named_parameters(), rule=rule).update
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for repetition in range(2 + REPETITIONS[shape]):
        model.renew_gradients()
        for name, work in contenders.items():
            taken = seconds(work, device)
            if repetition >= 2:  # the first two have no previous gradient, or copy it
                times[name].append(taken)
    median = {name: statistics.median(values) for name, values in times.items()}
    median["copy"] = min(times["copy"])  # the strictest bound: other load slows a copy at times
    stream = median["copy"] / 2
    figures = {f"{name}_ms": 1e3 * value for name, value in median.items()}
    for rule, streams in STREAMS.items():
        figures[f"{rule}_bound_ms"] = 1e3 * streams * stream
        figures[f"{rule}_times_bound"] = median[rule] / (streams * stream)
    return {
        "tensors": len(model.weights),
        "elements": numel,
        "copy_gb_per_s": 8 * numel / median["copy"] / 1e9,
        **figures,
        "plain_loop_times_bound": median["plain_loop"] / (STREAMS["release"] * stream),
        "speedup_over_plain_loop": median["plain_loop"] / median["release"],
    }


def training_step_ms(device: str) -> float:
    """Return the median time of a LoRA training step of SmolLM2-135M's shape, batch 8 x 64."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    adapter = LoraConfig(r=8, target_modules="all-linear")
    model = get_peft_model(LlamaForCausalLM(config), adapter).to(device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    tokens = torch.randint(0, 49152, (8, 64), device=device)

    def step() -> None:
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return 1e3 * statistics.median([seconds(step, device) for _ in range(6)][1:])


def extra_memory(shape: str, *, rule: str, device: str) -> dict[str, float]:
    """Return the peak memory that updates add, in multiples of the parameters' float32 size.

    The previous gradient counts: without the average, a gradient dies before the next is born.
    ``allocated`` counts the bytes that torch's allocator had handed out, temporaries included;
    ``resident`` is the process's peak, with what malloc keeps and the code that was loaded.
    Runs alone in its process, since a peak never falls.
    """
    shapes = shape_a() if shape == "a" else shape_b()
    zeros = [torch.zeros(size, device=device) for size in shapes]
    parameters = [(str(i), nn.Parameter(values)) for i, values in enumerate(zeros)]
    size = sum(p.numel() for _, p in parameters) * 4

    def loop(update: Callable[[], object]) -> None:
        for _ in range(4):
            for _, p in parameters:
                p.grad = torch.ones_like(p)
            update()
            for _, p in parameters:
                p.grad = None

    def without() -> None:
        loop(lambda: None)

    def with_average() -> None:
        loop(DynamicEMA(parameters, rule=rule).update)

    if device == "cuda":
        with_average()  # compiles the kernels
        return {"allocated": (_device_peak(with_average) - _device_peak(without)) / size}
    without()
    before = _resident_peak()
    with_average()
    resident = (_resident_peak() - before) / size
    allocated = (_allocated_peak(with_average) - _allocated_peak(without)) / size
    return {"allocated": allocated, "resident": resident}


def _device_peak(work: Callable[[], object]) -> int:
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated()


def _allocated_peak(work: Callable[[], object]) -> int:
    gc.collect()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    return max(e["args"]["Total Allocated"] for e in events if e.get("name") == "[memory]")


def _resident_peak() -> int:
    gc.collect()
    # Not getrusage: its peak includes that of the process this one was forked from.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def _memory_in_a_process(shape: str, rule: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.speed.ema", "--memory-of", shape, rule]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def machine(device: str) -> dict[str, str | int]:
    """Return what the figures were measured on."""
    name = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else torch.backends.cpu.get_cpu_capability()
    )
    return {
        "device": f"{device}: {name}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def report(result: dict) -> str:
    """Return the tables of docs/ema.md, of the parts that were measured."""
    tables = {"a": _times_table, "memory": _memory_table, "parity": _parity_table}
    return "\n\n".join("\n".join(table(result)) for key, table in tables.items() if key in result)


def _times_table(result: dict) -> list[str]:
    lines = ["| | (a) LoRA r=8, 420 tensors | (b) LoRA r=128, 448 tensors |", "| --- | --- | --- |"]
    rows = {
        "copy bandwidth, GB/s": "copy_gb_per_s",
        "plain loop, ms": "plain_loop_ms",
        "torch AveragedModel (fixed weight), ms": "averaged_model_ms",
        "`release`, ms": "release_ms",
        "`paper`, ms": "paper_ms",
        "`release`, times its bound": "release_times_bound",
        "`paper`, times its bound": "paper_times_bound",
        "plain loop, times the bound": "plain_loop_times_bound",
        "`release` against the plain loop": "speedup_over_plain_loop",
    }
    for label, key in rows.items():
        lines.append(f"| {label} | {result['a'][key]:.2f} | {result['b'][key]:.2f} |")
    share = result["training_step_share"]
    return [*lines, "", f"Share of a SmolLM2-135M training step (8 x 64 tokens), (a): {share:.2%}."]


def _parity_table(result: dict) -> list[str]:
    lines = ["| two processes | `paper` | `release` | `curvature` |", "| --- | --- | --- | --- |"]
    for setting, cells in result["parity"].items():
        figures = [cells.get(f"{rule}/float32") for rule in ("paper", "release", "curvature")]
        shown = [f"{cell['difference']:.1e}" if cell else "not run" for cell in figures]
        lines.append(f"| {setting} | {' | '.join(shown)} |")
    return lines


def _memory_table(result: dict) -> list[str]:
    lines = ["| peak extra memory, float32 sizes of the parameters | (a) | (b) |"]
    lines.append("| --- | --- | --- |")
    for rule, shapes in result["memory"].items():
        for kind in shapes["b"]:
            figures = [f"{shapes[shape][kind]:.4f}" for shape in ("a", "b")]
            lines.append(f"| `{rule}`, {kind} | {' | '.join(figures)} |")
    return lines


def measure_times(device: str) -> dict:
    """Return how long updates take, and what share of a training step that is."""
    shapes = {shape: measure(shape, device) for shape in ("a", "b")}
    step_ms = training_step_ms(device)
    share = shapes["a"]["release_ms"] / step_ms
    return {
        "machine": machine(device),
        **shapes,
        "training_step_ms": step_ms,
        "training_step_share": share,
    }


def measure_memory(device: str) -> dict:
    """Return rule -> shape -> figures of ``extra_memory``."""
    figures = {
        rule: {shape: _memory_in_a_process(shape, rule) for shape in ("a", "b")} for rule in STREAMS
    }
    return {"memory": figures}


def measure_parity(device: str) -> dict:
    """Return how far two processes are from one, in every setting that runs here."""
    here = [setting for setting in SETTINGS if not missing(setting)]
    not_here = {s: {"reason": missing(s)} for s in SETTINGS if missing(s)}
    return {"parity": on_two_processes(compare_all, here) | not_here}


PARTS = {"times": measure_times, "memory": measure_memory, "parity": measure_parity}


def main() -> None:
    """Measure everything or some parts, write them into the JSON and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parser.add_argument("--memory-of", nargs=2, metavar=("SHAPE", "RULE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if asked.memory_of:
        shape, rule = asked.memory_of
        print(json.dumps(extra_memory(shape, rule=rule, device=device)))
        return
    result = kept("ema") or {}
    for part in asked.only:
        result |= PARTS[part](device)
    keep("ema", result)
    print(report(result))
    if device == "cpu":
        print("\nNo GPU at hand: the same command measures one where there is.")


if __name__ == "__main__":
    main()
