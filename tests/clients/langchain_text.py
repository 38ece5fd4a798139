"""langchain-openai: OpenAI, which always sends a list of prompts."""

import openai
from langchain_openai import OpenAI
from told import LONG, URL, fails_with, tell

model = OpenAI(model="base", base_url=URL, api_key="none", max_retries=0, max_tokens=256)

tell(
    text=lambda: isinstance(model.invoke("One, two,"), str) and len(model.batch(["a", "b"])) == 2,
    stream=lambda: isinstance("".join(model.stream("One, two,")), str),
    too_long=lambda: fails_with(openai.BadRequestError, lambda: model.invoke(LONG)),
)
