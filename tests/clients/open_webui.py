"""The requests of Open WebUI, as it sends them: its models, a chat, and the title of the chat."""

import json

import httpx
from told import LONG, URL, tell

client = httpx.Client(
    base_url=URL,
    headers={
        "Authorization": "Bearer none",
        "X-OpenWebUI-User-Name": "A%20Person",
        "X-OpenWebUI-User-Id": "1d0f9d1e",
        "X-OpenWebUI-User-Email": "a@example.org",
        "X-OpenWebUI-User-Role": "user",
        "X-OpenWebUI-Chat-Id": "5e2a",
    },
    timeout=60,
)
user = {"role": "user", "content": "Say the letter of the colour.\n\ngreen 7"}
TITLE = {
    "role": "user",
    "content": "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat "
    'history.\n### Output:\nJSON format: { "title": "your concise title here" }',
}


def chat(*messages, **more):
    body = {"stream": True, "model": "assistant", "messages": messages, **more}
    return client.post("/chat/completions", json=body)


def streamed(*messages):
    answer = chat(*messages, stream_options={"include_usage": True}).raise_for_status()
    lines = [line for line in answer.text.splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    pieces = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert pieces[-1]["usage"]["completion_tokens"]
    return "".join(p["choices"][0]["delta"].get("content", "") for p in pieces[:-1])


def turns():
    text = streamed(user)
    streamed(user, {"role": "assistant", "content": text}, {"role": "user", "content": "and red"})


def title():
    answer = chat(TITLE, stream=False, max_completion_tokens=1000).raise_for_status()
    assert chat(TITLE, stream=False, max_tokens=1000).status_code == 200
    return answer.json()["usage"]


tell(
    answer=title,
    stream=lambda: streamed(user) is not None,
    conversation=turns,
    models=lambda: [m["id"] for m in client.get("/models").raise_for_status().json()["data"]],
    too_long=lambda: (
        chat({"role": "user", "content": LONG}).json()["error"]["code"] == "context_length_exceeded"
    ),
)
