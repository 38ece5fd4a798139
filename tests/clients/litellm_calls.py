"""litellm: its fallbacks to longer contexts rest on its own error."""

import litellm
from told import LONG, URL, fails_with, tell

user = {"role": "user", "content": "Say the letter of the colour.\n\ngreen 7"}


def chat(messages=(user,), **more):
    return litellm.completion(
        model="openai/assistant",
        messages=[*messages],
        api_base=URL,
        api_key="none",
        num_retries=0,
        **{"max_tokens": 2048, **more},
    )


def turns():
    first = chat().choices[0].message
    return chat([user, first, {"role": "user", "content": "and red 1"}]).usage.total_tokens


def text(**more):
    return litellm.text_completion(
        model="text-completion-openai/base", api_base=URL, api_key="none", max_tokens=4, **more
    )


tell(
    answer=lambda: chat().usage.total_tokens,
    stream=lambda: list(chat(stream=True, stream_options={"include_usage": True}))[-1],
    conversation=turns,
    text=lambda: text(prompt="One, two,").choices and text(prompt=["a", "b"]).choices,
    too_long=lambda: fails_with(
        litellm.ContextWindowExceededError, lambda: chat([{"role": "user", "content": LONG}])
    ),
)
