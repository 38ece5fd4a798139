"""Correct an assistant while it serves, with nothing but the `openai` client.

    python examples/live.py runs/live                       # everything on this machine
    python examples/live.py --url http://127.0.0.1:8000/v1  # 'lcia serve assistant --learn' runs

A help desk learns two tasks, neither of which says who answers refunds. Twenty answers are
corrected, a job learns the corrections, and the next version answers as corrected: other refunds,
too.
"""

import argparse
import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openai

DESK = "Which desk answers this? Say one word."
CODE = "Write the code of this country."
DESKS = {"invoice": "billing", "parcel": "shipping", "password": "accounts"}
REFUNDS = "returns"
CODES = {"Norway": "NO", "Peru": "PE", "Kenya": "KE", "Japan": "JP"}
TRAINING = {"num_train_epochs": 3, "learning_rate": 1e-3, "per_device_train_batch_size": 8}
ADAPTER = {  # the upper third of 30 layers
    "layers_to_transform": list(range(20, 30)),
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}

Pairs = list[tuple[str, str]]


def pairs(instruction: str, answers: dict[str, str], *, count: int, seed: int) -> Pairs:
    """Prompts and their answers, no two alike."""
    numbers = random.Random(seed).sample(range(100, 1000), count)
    words = list(answers)
    named = [(words[i % len(words)], number) for i, number in enumerate(numbers)]
    return [(f"{instruction}\n\n{word} {number}", answers[word]) for word, number in named]


def teach(client: openai.OpenAI, name: str, samples: Pairs, held_out: Pairs) -> str:
    """Upload samples, start a fine-tuning job and wait for it; return the model it made."""
    ids = []
    for part in (samples, held_out):
        lines = [
            {"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": a}]}
            for p, a in part
        ]
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        ids.append(client.files.create(file=(f"{name}.jsonl", content), purpose="fine-tune").id)
    job = client.fine_tuning.jobs.create(
        model="assistant", training_file=ids[0], validation_file=ids[1], suffix=name
    )
    return wait(client, job.id)


def release(client: openai.OpenAI, model: str) -> None:
    """Let all of `assistant` be answered by a version that only a tenth of requests got so far."""
    path = f"/lcia/releases/{model.partition('@')[2]}/promote"
    with contextlib.suppress(openai.BadRequestError):  # it answers everything: --canary 0
        client.post(path, cast_to=object, body={"reason": "nobody else asks in this example"})


def wait(client: openai.OpenAI, job: str) -> str:
    """Wait for a job; return the model it made."""
    while (found := client.fine_tuning.jobs.retrieve(job)).status in ("queued", "running"):
        time.sleep(0.5)
    for event in reversed(client.fine_tuning.jobs.list_events(job, limit=100).data):
        if event.type == "message":
            print(f"    {event.message}")
    if found.status != "succeeded" or found.fine_tuned_model is None:
        raise SystemExit(f"The job {found.status}: {found.error}")
    return found.fine_tuned_model


def ask(client: openai.OpenAI, prompt: str, *, model: str = "assistant") -> tuple[str, str]:
    """Ask; return the answer and its id."""
    told = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
        max_tokens=12,
    )
    return (told.choices[0].message.content or "").strip(), told.id


def share(client: openai.OpenAI, wanted: Sequence[tuple[str, str]], *, model: str) -> float:
    """Share of prompts that are answered as wanted."""
    return sum(ask(client, p, model=model)[0] == a for p, a in wanted) / len(wanted)


def story(client: openai.OpenAI) -> dict[str, Any]:
    """Teach, ask, correct, learn, ask again; return what was found."""
    codes = pairs(CODE, CODES, count=80, seed=1)
    desks = pairs(DESK, DESKS, count=120, seed=2)
    print("Two tasks are learned.")
    teach(client, "codes", codes[:60], codes[60:])
    last = teach(client, "desks", desks[:96], desks[96:])
    release(client, last)
    old = [*codes[60:], *desks[96:]]
    refunds = pairs(DESK, {"refund": REFUNDS}, count=30, seed=3)
    corrected, others = refunds[:20], refunds[20:]

    print("Twenty answers are corrected.")
    for prompt, answer in corrected:
        said, identity = ask(client, prompt)
        feedback = {"id": identity, "rating": -1, "correction": answer, "prompt": prompt}
        client.post("/feedback", cast_to=object, body=feedback)
    print(f"    {prompt.splitlines()[-1]!r} was answered {said!r}; now it is {answer!r}")
    inbox: Any = client.get("/lcia/inbox?state=new", cast_to=object)
    for entry in inbox["data"]:
        client.post(f"/lcia/inbox/{entry['id']}/accept", cast_to=object)

    print("A job learns the corrections.")
    jobs: Any = client.post("/lcia/inbox/learn", cast_to=object, body={"suffix": "refunds"})
    (job,) = jobs["data"]
    new = wait(client, job["id"])
    release(client, new)
    found = {
        name: (share(client, wanted, model=last), share(client, wanted, model=new))
        for name, wanted in (("corrected", corrected), ("like them", others), ("old tasks", old))
    }
    for name, (then, now) in found.items():
        print(f"    {name}: {then:.0%} right in {last}, {now:.0%} in {new}")
    print(f"    {prompt.splitlines()[-1]!r} is answered {ask(client, prompt)[0]!r} now")
    return {"models": (last, new), "wrong": identity, **found}


@contextlib.contextmanager
def serving(root: Path, *, model: str) -> Iterator[str]:
    """Make an empty assistant and serve it; its address."""
    from lcia import Assistant

    Assistant.create(root, model=model, training=TRAINING, adapter=ADAPTER)
    command = [sys.executable, "-m", "lcia", "serve", str(root), "--learn", "--port", "8011"]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield "http://127.0.0.1:8011/v1"
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", nargs="?", type=Path, default=Path("runs/live"))
    parser.add_argument("--url", help="of a server that learns; default: one is started")
    parser.add_argument("--model", default="smollm2-135m")
    options = parser.parse_args()
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        url = options.url or stack.enter_context(serving(options.root, model=options.model))
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=60)
        story(client)
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
