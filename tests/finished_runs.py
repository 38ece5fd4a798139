"""Folders as ``lcia run`` leaves them, with made-up scores."""

import json
import random

import yaml

from lcia.evaluation import MEASURES, AccuracyMatrix, summarise

TASKS = ("dates", "words", "signs")


def write_run(
    root,
    label="lcia",
    *,
    method="lcia",
    seed=0,
    order="as_listed",
    tasks=TASKS,
    loss=4.0,
    learns=80.0,
    beta=None,
    begun=0.0,
    settings=None,
    **metrics,
):
    """Write one finished sub-run: tasks score ``learns``, and ``loss`` less after each later."""
    folder = (
        root / f"{label}-seed{seed}" if order == "as_listed" else root / f"{label}-{seed}-{order}"
    )
    folder.mkdir(parents=True)
    noise = random.Random(f"{label} {seed} {order}")
    matrix = AccuracyMatrix.start(tasks, {task: 10.0 + noise.random() for task in tasks})
    steps = []
    for t, task in enumerate(tasks, 1):
        scores = {
            name: max(0.0, learns - loss * (t - i) + 3 * noise.random())
            for i, name in enumerate(tasks[:t], 1)
        }
        if t < len(tasks):
            scores[tasks[t]] = 15 + 5 * noise.random()
        matrix = matrix.append(task, scores)
        for step in range(1, 13):
            event = {"event": "step", "time": begun, "task": task, "step": step, "loss": 1 / step}
            if beta is not None and t > 1:
                middle = beta + 0.05 * noise.random()
                event |= {
                    "ema/beta_mean": middle,
                    "ema/beta_min": middle - 0.1,
                    "ema/beta_max": min(1.0, middle + 0.02),
                    "ema/fallback/out_of_range": 0.3,
                }
            steps.append(event)
    if method == "multitask":
        empty = (None,) * len(tasks)
        matrix = AccuracyMatrix(tasks=matrix.tasks, rows=(*[empty] * len(tasks), matrix.rows[-1]))
    found = {
        **dict.fromkeys(MEASURES),
        **summarise(matrix),
        "groups": 4,
        "seconds": 100.0,
        "stored_parameters": 2_400_000,
        **metrics,
    }
    if beta is not None:
        found |= {"beta_mean": beta, "horizon_steps": 1 / (1 - beta), "fallback_share": 30.0}
    (folder / "metrics.json").write_text(
        json.dumps(
            {
                "label": label,
                "method": {"name": method},
                "seed": seed,
                "order": order,
                "matrix": matrix.to_json(),
                "metrics": found,
                "environment": {"platform": "p", "torch": "2"},
            }
        )
    )
    resolved = {
        "settings": {"model": "m", "method": {"name": method}, "seed": seed, **(settings or {})},
        "tasks": {task: f"print of {task}" for task in tasks},
        "held_out": {},
    }
    (folder / "resolved.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False))
    first = {"event": "grouped", "time": begun}
    (folder / "journal.jsonl").write_text("".join(json.dumps(e) + "\n" for e in [first, *steps]))
    return folder
