"""Teach an assistant two tasks and ask it: run from the repository root."""

import tempfile

from lcia import Assistant
from lcia.data import load_stream

tasks = {task.name: task for task in load_stream("builtin:skills")}
with tempfile.TemporaryDirectory() as folder:
    assistant = Assistant.create(
        f"{folder}/assistant", model="smollm2-135m", training={"num_train_epochs": 2}
    )
    for name in ("dates_german", "continents"):
        outcome = assistant.learn(tasks[name])
        print(name, outcome.group, outcome.reason, outcome.score_before, outcome.scores[name])
    answer = assistant.answer("May 3\n\nTranslate into German.")
    print(answer.text, answer.group, answer.reason)
