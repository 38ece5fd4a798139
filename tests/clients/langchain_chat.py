"""langchain-openai: ChatOpenAI."""

from langchain_core.exceptions import ContextOverflowError
from langchain_openai import ChatOpenAI
from told import LONG, URL, fails_with, tell

model = ChatOpenAI(model="assistant", base_url=URL, api_key="none", max_retries=0, max_tokens=1000)
question = "Say the letter of the colour.\n\ngreen 7"


def turns():
    first = model.invoke(question)
    return model.invoke([("user", question), first, ("user", "and red 1")]).usage_metadata


tell(
    answer=lambda: model.invoke(question).usage_metadata and model.batch([question] * 2),
    stream=lambda: list(model.stream(question)),
    conversation=turns,
    too_long=lambda: (
        fails_with(ContextOverflowError, lambda: model.invoke(LONG))
        and fails_with(ContextOverflowError, lambda: list(model.stream(LONG)))
    ),
)
