"""openai: a conversation that keeps the answers as they come."""

import openai
from told import LONG, URL, fails_with, tell

client = openai.OpenAI(base_url=URL, api_key="none", max_retries=0)
user = {"role": "user", "content": "Say the letter of the colour.\n\ngreen 7"}


def chat(messages=(user,), **more):
    return client.chat.completions.create(
        model="assistant", messages=[*messages], **{"max_tokens": 4096, **more}
    )


def stream():
    options = {"include_usage": True}
    pieces = list(chat(stream=True, stream_options=options))
    return pieces[-1].usage.completion_tokens > 0


def turns():
    first = chat().choices[0].message
    return chat([user, first, {"role": "user", "content": "and red 1"}]).usage


def parse():
    with client.chat.completions.stream(
        model="assistant", messages=[user], max_completion_tokens=4
    ) as events:
        return [event.type for event in events][-1]


tell(
    answer=lambda: chat().usage.total_tokens,
    stream=lambda: stream() and parse(),
    conversation=turns,
    text=lambda: client.completions.create(model="base", prompt=["a", "b"]).choices[1].index == 1,
    models=lambda: all(client.models.retrieve(m.id).id == m.id for m in client.models.list()),
    too_long=lambda: fails_with(
        openai.BadRequestError, lambda: chat([{"role": "user", "content": LONG}])
    ),
)
