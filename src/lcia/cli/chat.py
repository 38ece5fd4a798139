"""``lcia chat``: ask an assistant."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lcia.cli.store import StorePath

if TYPE_CHECKING:
    from lcia.assistant import Answer
    from lcia.data import Message
    from lcia.evaluation.generate import Prediction


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(chat)


def chat(
    store: StorePath,
    prompts: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="Ask this and stop; repeatable.")
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", help="A system turn before every prompt.")
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option("--image", help="An image to ask about; repeatable.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print answers as JSON.")] = False,
) -> None:
    r"""Ask an assistant; it says which group answers and why.

    A line is one prompt, and a backslash-n in it a line break; an empty line ends.

    Examples:

      lcia chat assistant

      lcia chat assistant --image cat.jpg -p "What is this?\nAnswer in a single word."

      lcia chat assistant -p "On which continent is this country?\n\nPeru"

      lcia chat assistant --system "On which continent is this country?" -p Peru
    """
    import sys
    from dataclasses import asdict

    from lcia.assistant import Assistant
    from lcia.cli.console import console, print_json

    assistant = Assistant.open(store)
    if prompts:
        asked = [prompt.replace("\\n", "\n") for prompt in prompts]
        answers = assistant.answer_many(
            [_conversation(system, prompt) for prompt in asked],
            images=[images or ()] * len(asked),
            max_new_tokens=max_new_tokens,
        )
        if as_json:
            print_json([asdict(answer) for answer in answers])
            return
        for prompt, answer in zip(asked, answers, strict=True):
            console.print(f"> {prompt}", markup=False)
            _show(answer)
        return
    console.print("Ask; an empty line ends.", markup=False)
    while line := (console.input("> ") if sys.stdin.isatty() else sys.stdin.readline()).strip():
        prompt = line.replace("\\n", "\n")
        said = _conversation(system, prompt)
        _show(assistant.answer(said, images=images or (), max_new_tokens=max_new_tokens))


def _conversation(system: str | None, prompt: str) -> "str | list[Message]":
    from lcia.data import Message

    if system is None:
        return prompt
    return [Message(role="system", content=system), Message(role="user", content=prompt)]


def _show(answer: "Answer") -> None:
    from lcia.cli.console import console

    console.print(answer.text, markup=False)
    console.print(explain(answer), style="dim", markup=False)


def explain(answer: "Answer | Prediction") -> str:
    """Return one line: which group answered, how similar, why."""
    reason = {
        "reached": "its instructions match",
        "content": "its instructions match, and what the prompt is about",
        "below_content": "below the threshold, so what the prompt is about decides",
        "off_topic": "like nothing it was taught, so the base model answers",
        "below_nearest": "below the threshold, so the nearest group answers",
        "below_latest": "below the threshold, so the latest group answers",
        "below_base": "below the threshold, so the base model answers",
        "task_given": "it learned this task",
        "no_groups": "nothing is learned yet",
    }[answer.reason]
    return f"  [{answer.group or 'base model'}; similarity {answer.similarity:.2f}; {reason}]"
