"""One decoding step of a batch that mixes adapters: ``AdapterBank`` against peft.

    python -m benchmarks.speed.adapters     # a table, kept as adapters

The embedded model, LoRA r=8 on all linear layers, 100 tokens of context. All variants take turns in
one process; the median of their steps. ``seconds`` is processor time, so that other work on the
machine counts less.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import DynamicCache

from benchmarks.measured import keep
from benchmarks.serving_server import make_store
from lcia.learner import load_host
from lcia.models.batches import cache_argument
from lcia.serving.engine.bank import AdapterBank

CONTEXT = 100


def prepared(model: Any, rows: int) -> Callable[..., float]:
    """Return a function that takes one step and returns its processor time in seconds."""
    cache = DynamicCache()
    ids = torch.randint(5, 4000, (rows, CONTEXT))
    options = {cache_argument(model): cache, "logits_to_keep": 1}
    model(input_ids=ids, **options)

    def step(stepped: Any = model, **more: Any) -> float:
        started = time.process_time()
        stepped(
            input_ids=ids[:, :1],
            attention_mask=torch.ones(rows, CONTEXT + 1, dtype=torch.long),
            position_ids=torch.full((rows, 1), CONTEXT),
            **options,
            **more,
        )
        seconds = time.process_time() - started
        cache.crop(-1)
        return seconds

    return step


@torch.inference_mode()
def measure(store: Path, rows: int, repetitions: int) -> dict[str, float]:
    """Return variant to the median milliseconds of a step."""
    host = load_host(make_store(store).config)
    adapters = list(make_store(store).current.adapters.values())
    model = host.base.model
    step = prepared(model, rows)
    taken: dict[str, list[float]] = {}
    for _ in range(repetitions):
        taken.setdefault("base model", []).append(step())
        bank = AdapterBank(model, max_loaded=8)
        for adapter in adapters:
            bank.acquire(*adapter)
        for name, count in (("bank, 1 adapter", 1), ("bank, 4 adapters", 4)):
            bank.select([adapters[i % count][0] for i in range(rows)])
            step()
            taken.setdefault(name, []).append(step())
        bank.detach()
        mixed = None
        for key, folder in adapters:
            if mixed is None:
                mixed = PeftModel.from_pretrained(model, folder, adapter_name=key).eval()
            else:
                mixed.load_adapter(folder, adapter_name=key)
        for name, count in (("peft, 1 adapter", 1), ("peft, 4 adapters", 4)):
            names = [adapters[i % count][0] for i in range(rows)]
            step(mixed, adapter_names=names)
            taken.setdefault(name, []).append(step(mixed, adapter_names=names))
        mixed.unload()
    return {name: 1000 * statistics.median(values) for name, values in taken.items()}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, help="keep the assistant here; default: temporary")
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store = options.store or Path(scratch) / "assistant"
        result: dict[str, Any] = {
            str(rows): measure(store, rows, options.repetitions) for rows in (1, 8, 32)
        }
    result["threads"] = torch.get_num_threads()
    keep("adapters", result)
    print("| ms a step | 1 row | 8 rows | 32 rows |\n| --- | --- | --- | --- |")
    for name in result["1"]:
        print(f"| {name} | {' | '.join(f'{result[n][name]:.0f}' for n in ('1', '8', '32'))} |")


if __name__ == "__main__":
    main()
