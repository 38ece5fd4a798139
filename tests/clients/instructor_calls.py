"""instructor: objects out of plain text (MD_JSON); its other modes need tools or JSON mode."""

import instructor
import openai
from instructor.core.exceptions import IncompleteOutputException, InstructorRetryException
from pydantic import BaseModel
from told import LONG, URL, fails_with, tell

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
