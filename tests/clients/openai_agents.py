"""openai-agents: an agent over chat completions."""

import asyncio

import openai
from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, set_tracing_disabled
from told import LONG, URL, fails_with, tell

set_tracing_disabled(True)
client = openai.AsyncOpenAI(base_url=URL, api_key="none", max_retries=0)
agent = Agent(
    name="lcia",
    instructions="Say the letter of the colour.",
    model=OpenAIChatCompletionsModel(model="assistant", openai_client=client),
    model_settings=ModelSettings(max_tokens=1024, store=False, include_usage=True),
)
loop = asyncio.new_event_loop()


def run(asked):
    return loop.run_until_complete(Runner.run(agent, asked))


async def stream():
    running = Runner.run_streamed(agent, "green 7")
    return [event async for event in running.stream_events()]


def turns():
    first = run("green 7")
    return run([*first.to_input_list(), {"role": "user", "content": "and red 1"}]).raw_responses


tell(
    answer=lambda: run("green 7").raw_responses,
    stream=lambda: loop.run_until_complete(stream()),
    conversation=turns,
    too_long=lambda: fails_with(openai.BadRequestError, lambda: run(LONG)),
)
