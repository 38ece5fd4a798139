"""Programs that call a server through a client as it is published: ``programs.py NAME URL``.

Each runs where its own client alone is installed, and tells which of its calls worked: one line of
JSON a call.
"""

import asyncio
import inspect
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

URL = sys.argv[2]
LONG = "one two three four " * 2000
"""More tokens than any model of the tests reads."""


def tell(**calls):
    """Make every call; none of them hides another one's failure."""
    for name, call in calls.items():
        try:
            result = call()
            if inspect.iscoroutine(result):
                result = asyncio.run(result)
            told = None if result is None or result else f"returned {result!r}"
        except Exception as error:  # noqa: BLE001
            told = f"{type(error).__name__}: {error}"[:500]
        print(json.dumps({"call": name, "wrong": told}), flush=True)  # noqa: T201


def fails_with(error, call):
    """Tell whether a call fails, and in this very way."""
    try:
        call()
    except error:
        return True
    return False


def openai_python():
    """openai: a conversation that keeps the answers as they come."""
    import openai

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
        text=lambda: (
            client.completions.create(model="base", prompt=["a", "b"]).choices[1].index == 1
        ),
        models=lambda: all(client.models.retrieve(m.id).id == m.id for m in client.models.list()),
        too_long=lambda: fails_with(
            openai.BadRequestError, lambda: chat([{"role": "user", "content": LONG}])
        ),
    )


def litellm_calls():
    """litellm: its fallbacks to longer contexts rest on its own error."""
    import litellm

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


def langchain_chat():
    """langchain-openai: ChatOpenAI."""
    from langchain_core.exceptions import ContextOverflowError
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(
        model="assistant", base_url=URL, api_key="none", max_retries=0, max_tokens=1000
    )
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


def langchain_text():
    """langchain-openai: OpenAI, which always sends a list of prompts."""
    import openai
    from langchain_openai import OpenAI

    model = OpenAI(model="base", base_url=URL, api_key="none", max_retries=0, max_tokens=256)

    tell(
        text=lambda: (
            isinstance(model.invoke("One, two,"), str) and len(model.batch(["a", "b"])) == 2
        ),
        stream=lambda: isinstance("".join(model.stream("One, two,")), str),
        too_long=lambda: fails_with(openai.BadRequestError, lambda: model.invoke(LONG)),
    )


def llm_command():
    """llm: the command line, with the server in its file of models."""
    home = Path(tempfile.mkdtemp())
    models = [
        {"model_id": "lcia", "model_name": "assistant", "api_base": URL},
        {"model_id": "lcia-text", "model_name": "base", "api_base": URL, "completion": True},
    ]
    (home / "extra-openai-models.yaml").write_text(json.dumps(models))

    def llm(*arguments):
        done = subprocess.run(
            [Path(sys.executable).with_name("llm"), *arguments],
            env={**os.environ, "LLM_USER_PATH": str(home), "OPENAI_API_KEY": "none"},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip())

    def too_long():
        try:
            llm("-m", "lcia", LONG)
        except RuntimeError as error:
            return "maximum context length" in str(error)
        return False

    tell(
        answer=lambda: llm("-m", "lcia", "--no-stream", "green 7"),
        stream=lambda: llm("-m", "lcia", "-s", "Say the letter of the colour.", "green 7"),
        conversation=lambda: llm("-m", "lcia", "-c", "and red 1"),
        text=lambda: llm("-m", "lcia-text", "One, two,", "-o", "max_tokens", "4"),
        too_long=too_long,
    )


def pydantic_ai_agent():
    """pydantic-ai: an agent without tools."""
    from pydantic_ai import Agent
    from pydantic_ai.exceptions import ModelHTTPError
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

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


def openai_agents():
    """openai-agents: an agent over chat completions."""
    import openai
    from agents import (
        Agent,
        ModelSettings,
        OpenAIChatCompletionsModel,
        Runner,
        set_tracing_disabled,
    )

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


def instructor_calls():
    """instructor: objects out of plain text (MD_JSON); its other modes need tools or JSON mode."""
    import instructor
    import openai
    from instructor.core.exceptions import IncompleteOutputException, InstructorRetryException
    from pydantic import BaseModel

    client = openai.OpenAI(base_url=URL, api_key="none", max_retries=0)
    user = {"role": "user", "content": "green 7"}
    answered, refused = [], []

    class Letter(BaseModel):
        a: str

    def ask(mode, content=user["content"], **more):
        asking = instructor.from_openai(client, mode=mode)
        asking.on("completion:response", answered.append)
        asking.on("completion:error", lambda error, **_: refused.append(str(error)))
        return asking.chat.completions.create(
            **{
                "model": "assistant",
                "messages": [{"role": "user", "content": content}],
                "response_model": Letter,
                "max_retries": 0,
                "max_tokens": 100,
                **more,
            }
        )

    def asked_for_an_object():
        """The model of the tests writes no JSON; that its answer came is what counts here."""
        try:
            ask(instructor.Mode.MD_JSON)
        except (IncompleteOutputException, InstructorRetryException) as error:
            if "Error code" in str(error) or not answered:
                raise
        return True

    def refused_by_name():
        for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON):
            try:
                ask(mode)
            except Exception as error:
                if "' is not supported by this server" not in str(error):
                    raise
            else:
                raise RuntimeError(f"{mode} was answered")
        return True

    tell(
        answer=lambda: ask(instructor.Mode.MD_JSON, response_model=None).usage,
        object=lambda: asked_for_an_object() and refused_by_name(),
        too_long=lambda: fails_with(Exception, lambda: ask(instructor.Mode.MD_JSON, LONG)),
    )


def open_webui():
    """Open WebUI's requests, as it sends them: its models, a chat, and the title of the chat."""
    import httpx

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
        "content": "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the "
        'chat history.\n### Output:\nJSON format: { "title": "your concise title here" }',
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
        streamed(
            user, {"role": "assistant", "content": text}, {"role": "user", "content": "and red"}
        )

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
            chat({"role": "user", "content": LONG}).json()["error"]["code"]
            == "context_length_exceeded"
        ),
    )


if __name__ == "__main__":
    globals()[sys.argv[1]]()
