"""How often the closed form of beta applies: ``python -m benchmarks.fallbacks``.

SmolLM2-135M learns one skill plainly and then another with every rule's average beside it. An
average does not act on training before its end, so that one training run measures all rules.
Rank, learning rate, batch size and number of steps vary one at a time. Writes
benchmarks/results/fallbacks.json and prints a table.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from lcia.data import Task, load_stream
from lcia.ema import DynamicEMA
from lcia.learner.collator import AnswerCollator
from lcia.learner.environment import environment
from lcia.models.host import AdapterHost
from lcia.models.loading import load_model

RULES = ("paper", "release", "next", "curvature")
RESULTS = Path(__file__).parent / "results" / "fallbacks.json"
LAYERS = list(range(20, 30))
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One training run: what varies."""

    rank: int = 8
    learning_rate: float = 1e-3
    batch_size: int = 8
    steps: int = 24


SETTINGS = (
    Setting(),
    Setting(rank=2),
    Setting(rank=64),
    Setting(learning_rate=2e-4),
    Setting(learning_rate=5e-5),
    Setting(batch_size=2),
    Setting(batch_size=32),
    Setting(steps=72),
)


def batches(host: AdapterHost, task: Task, setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield collated batches, epoch after epoch."""
    collate = AnswerCollator(pad_id=host.base.tokenizer.pad_token_id, keep_logits=True)
    examples = [host.chat.encode_example(sample) for sample in task.train]
    endless = itertools.cycle(examples)
    while True:
        yield collate(list(itertools.islice(endless, setting.batch_size)))


def train(
    host: AdapterHost, model: Any, task: Task, setting: Setting, averages: list[DynamicEMA]
) -> None:
    """Train on a task with AdamW and a constant learning rate; update all averages."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=setting.learning_rate, weight_decay=0.0)
    model.train()
    for batch in itertools.islice(batches(host, task, setting), setting.steps):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        for average in averages:
            average.update()
        optimizer.zero_grad()


def measure(host: AdapterHost, earlier: Task, later: Task, setting: Setting) -> dict[str, Any]:
    """Return, for each rule, what its average did on the later task."""
    torch.manual_seed(0)
    lora = LoraConfig(
        r=setting.rank,
        lora_alpha=2 * setting.rank,
        layers_to_transform=LAYERS,
        target_modules=[
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ],
    )
    model = host.new_adapter(lora)
    train(host, model, earlier, setting, [])
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    start = {name: p.detach().clone() for name, p in trained}
    averages = {rule: DynamicEMA(trained, rule=rule) for rule in RULES}
    train(host, model, later, setting, list(averages.values()))
    way = sum(float((p.detach() - start[name]).norm()) ** 2 for name, p in trained) ** 0.5
    return {rule: figures(average, start, way) for rule, average in averages.items()}


def figures(average: DynamicEMA, start: dict[str, torch.Tensor], way: float) -> dict[str, Any]:
    """Return beta, horizon, fallbacks, and how far the average came along the way of theta."""
    stats = average.stats()
    moved = sum(float((average.shadow[n] - t).norm()) ** 2 for n, t in start.items()) ** 0.5
    return {
        "closed_form": 1 - sum(stats.shares.values()),
        **stats.shares,
        "beta_mean": stats.beta_mean,
        "horizon_steps": stats.horizon_steps,
        "share_of_way": moved / way,
    }


def main() -> None:
    """Measure every setting, write the results, print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="two steps a setting: a trial")
    arguments = parser.parse_args()
    skills = {task.name: task for task in load_stream("builtin:skills")}
    host = AdapterHost(load_model("smollm2-135m"), max_prompt_tokens=128)
    rows = []
    for setting in SETTINGS:
        used = replace(setting, steps=2) if arguments.quick else setting
        found = measure(host, skills["dates_german"], skills["populations_german"], used)
        rows.append({"setting": asdict(used), "rules": found})
        for rule, row in found.items():
            print(
                f"{asdict(used)}  {rule:9}  closed form {row['closed_form']:4.0%}"
                f"  beta {row['beta_mean']:.3f}  horizon {row['horizon_steps']:6.1f} steps"
                f"  way {row['share_of_way']:4.0%}",
                flush=True,
            )
    report = {"environment": environment(), "rows": rows}
    arguments.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
