"""The losses of ten steps of each of two tasks, by every method, in float32 on the tiny model.

Renew them where a change of the losses is meant: PYTHONPATH=src:tests python tests/golden_curves.py
"""

import json
import tempfile
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden" / "loss_curves.json"


def curves(learner, tasks) -> dict[str, list[float]]:
    """Learn tasks one by one; return the loss of every step."""
    for task in tasks:
        learner.learn(task)
    versions = learner.store.history()
    return {
        version.manifest["task"]: [e["loss"] for e in version.journal() if e["event"] == "step"]
        for version in versions
    }


def configure(model: Path, name: str):
    """Return the settings of a curve."""
    from lcia.config import AssistantConfig

    training = {"learning_rate": 3e-2, "per_device_train_batch_size": 4, "max_steps": 10}
    adapter = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1}
    return AssistantConfig(
        model=str(model), dtype="float32", method=name, training=training, adapter=adapter
    )


def _renew() -> None:
    from conftest import make_task, save_tiny_model
    from lcia.learner import ContinualLearner
    from lcia.registry import METHODS

    line = "Say the letter of the colour."
    tasks = [
        make_task("colours", line, {"red": "r", "green": "g"}),
        make_task("shades", line, {"blue": "b", "white": "w"}),
    ]
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        model = save_tiny_model(Path(scratch) / "tiny")
        for name in METHODS.builtin:
            if METHODS.get(name).trains:
                root = Path(scratch) / name
                learner = ContinualLearner.create(root, configure(model, name))
                found[name] = curves(learner, tasks)
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    _renew()
