"""Teach an assistant two tasks and ask it; about two minutes on two cores."""

from lcia import Assistant
from lcia.data import load_stream

assistant = Assistant.create("my-assistant", model="smollm2-135m", training={"learning_rate": 1e-3})
for task in load_stream("builtin:skills")[:2]:
    outcome = assistant.learn(task)
    print(f"{task.name}: group {outcome.group}, {outcome.score_before} -> {outcome.scores}")

answer = assistant.answer("On which continent is Peru?\n\nAnswer with a single word or phrase.")
print(answer.text, "|", answer.group, "|", round(answer.similarity, 2), "|", answer.reason)
