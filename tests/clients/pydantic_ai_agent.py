"""pydantic-ai: an agent without tools."""

from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from told import LONG, URL, fails_with, tell

provider = OpenAIProvider(base_url=URL, api_key="none")
model = OpenAIChatModel("assistant", provider=provider)
agent = Agent(
    model,
    instructions="Say the letter of the colour.",
    model_settings={"max_tokens": 1024},
    retries=3,
)


async def stream():
    async with agent.run_stream("green 7") as result:
        return [piece async for piece in result.stream_text()] and None


def turns():
    first = agent.run_sync("green 7")
    return agent.run_sync("and red 1", message_history=first.all_messages()).usage


tell(
    answer=lambda: agent.run_sync("green 7").usage,
    stream=stream,
    conversation=turns,
    too_long=lambda: fails_with(ModelHTTPError, lambda: agent.run_sync(LONG)),
)
