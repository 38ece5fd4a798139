"""What clients may ask: OpenAI's requests, read strictly.

An OpenAPI document says the same, for programs that make clients or tests of the server.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationError
from pydantic.json_schema import models_json_schema
from pydantic_core import ErrorDetails

from lcia.grouping import Said
from lcia.registry import nearest
from lcia.serving.http.api_error import ApiError

# Fields that would change the answer in a way lcia does not offer, and values that ask for nothing.
# null asks for nothing anywhere.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "allowed_token_ids": ([],),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "guided_json": (),
    "guided_regex": (),
    "ignore_eos": (False,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "min_p": (0,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "n": (1,),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_logprobs": (),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_k": (-1, 0),
    "top_logprobs": (0,),
    "web_search_options": (),
}
# Fields that do not change the answer.
IGNORED = {
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "reasoning_effort",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "verbosity",
}
# Fields of a turn that clients send back with an answer's history; they change no answer.
HISTORY = {"annotations", "audio", "reasoning", "reasoning_content", "refusal"}
# Fields of a turn that ask for something lcia does not offer, unless they are empty.
TOOLS = {"function_call", "tool_calls", "tool_call_id"}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TextPart(_Strict):
    """Text in a message of several parts."""

    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    """Where an image is: a data URL, or an address if the server fetches images."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Strict):
    """An image in a message of several parts."""

    type: Literal["image_url"]
    image_url: ImageUrl


def _as_parts(content: Any) -> Any:
    """Read a text as one part, and a refusal that comes back with the history as what it says."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        return content
    return [_refused(part) if isinstance(part, dict) else part for part in content]


def _refused(part: dict[str, Any]) -> dict[str, Any]:
    if part.get("type") == "refusal" and part.keys() == {"type", "refusal"}:
        return {"type": "text", "text": part["refusal"]}
    return part


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Parts = Annotated[
    tuple[Part, ...], FailFast(), BeforeValidator(_as_parts), Field(min_length=1, strict=False)
]
Stop = Annotated[str, Field(min_length=1, max_length=200)]
Stops = Annotated[tuple[Stop, ...], BeforeValidator(_as_list), Field(max_length=4, strict=False)]


class ChatMessage(_Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Parts
    name: str | None = None

    @property
    def text(self) -> str:
        """The turn's text; several parts are lines."""
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def image_urls(self) -> tuple[str, ...]:
        """Where the turn's images are."""
        return tuple(p.image_url.url for p in self.content if isinstance(p, ImagePart))

    @property
    def image_places(self) -> tuple[int, ...]:
        """How many characters of the turn's text stand before each of its images."""
        places, texts = [], 0
        for part in self.content:
            if isinstance(part, TextPart):
                texts += len(part.text) + 1  # the line break after it
            else:
                places.append(max(0, texts - 1))
        return tuple(places)


Messages = Annotated[tuple[ChatMessage, ...], FailFast(), Field(min_length=1, strict=False)]


class StreamOptions(_Strict):
    """What a stream says besides the answer."""

    include_usage: bool = False
    include_obfuscation: bool = False


class GenerationRequest(_Strict):
    """The part that chat and completion requests share.

    Attributes:
        temperature: default: greedy, as held-out samples are scored.
    """

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return self.stop or ()

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the number of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(GenerationRequest):
    """``POST /v1/chat/completions``."""

    messages: Messages
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    @property
    def conversation(self) -> tuple[ChatMessage, ...]:
        """The turns."""
        return self.messages

    @property
    def answer_tokens(self) -> int | None:
        """Longest answer in tokens, if the client said so."""
        return self.max_completion_tokens or self.max_tokens


def _one(value: Any) -> Any:
    """Take a list of one prompt for the prompt, as several clients write it."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


class CompletionRequest(GenerationRequest):
    """``POST /v1/completions``: text that the model continues, without its chat template."""

    prompt: Annotated[str, BeforeValidator(_one), Field(min_length=1)]

    @property
    def conversation(self) -> tuple[ChatMessage, ...]:
        """The text as a turn, to route by."""
        return (ChatMessage(role="user", content=(TextPart(type="text", text=self.prompt),)),)

    @property
    def answer_tokens(self) -> int | None:
        """Longest answer in tokens, if the client said so."""
        return self.max_tokens


class RouteRequest(_Strict):
    """``POST /v1/route``."""

    messages: Messages


def said_in(messages: Sequence[ChatMessage]) -> Said:
    """Return what a conversation says to the model, to route by.

    Raises:
        ApiError: the user says nothing.
    """
    said = Said.by((message.role, message.text) for message in messages)
    if not said.turns:
        raise ApiError(
            400, "'messages' has no turn of the user.", code="invalid_messages", param="messages"
        )
    return said


Request = TypeVar("Request", bound=_Strict)


MAX_PROMPTS = 64
"""Prompts of one completion request."""


def parse_completions(tree: Mapping[str, Any]) -> list[CompletionRequest]:
    """Read a completion request of one or several prompts: one request for each.

    Raises:
        ApiError: 400, and the field that is at fault.
    """
    prompts = tree.get("prompt")
    if not isinstance(prompts, list) or len(prompts) < 2:
        return [parse(CompletionRequest, tree)]
    problem = ""
    if all(isinstance(prompt, int) for prompt in prompts):
        problem = "is a list of token ids; expected text: this server routes by words"
    elif len(prompts) > MAX_PROMPTS:
        problem = f"has {len(prompts)} prompts; expected at most {MAX_PROMPTS}"
    if problem:
        raise ApiError(400, f"'prompt' {problem}.", code="invalid_value", param="prompt")
    first = parse(CompletionRequest, {**tree, "prompt": prompts[0]})
    others = [parse(CompletionRequest, {**tree, "prompt": prompt}) for prompt in prompts[1:]]
    return [first, *others]


def parse(kind: type[Request], tree: Mapping[str, Any]) -> Request:
    """Read a request. A field that is null is absent, whatever it is.

    Raises:
        ApiError: 400, and the field that is at fault.
    """
    fields = {k: v for k, v in tree.items() if k not in IGNORED and v is not None}
    for name, neutral in REFUSED.items():
        if name in fields and not _asks_nothing(fields.pop(name), neutral):
            raise ApiError(
                400,
                f"'{name}' is not supported by this server; leave it out.",
                code="unsupported_parameter",
                param=name,
            )
    if isinstance(messages := fields.get("messages"), list):
        fields["messages"] = [_turn(turn, i) for i, turn in enumerate(messages)]
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _explained(kind, error) from error


def _asks_nothing(value: Any, neutral: tuple[Any, ...]) -> bool:
    """Whether a value is one of the neutral ones; 0 and false are two."""
    return any(value == n and isinstance(value, bool) == isinstance(n, bool) for n in neutral)


def _turn(turn: Any, index: int) -> Any:
    """Return a turn without what is null, and without what a client's history adds to it."""
    if not isinstance(turn, dict):
        return turn
    kept = {k: v for k, v in turn.items() if v is not None and k not in HISTORY}
    for name in TOOLS & kept.keys():
        if kept.pop(name) not in ("", [], {}):
            raise ApiError(
                400,
                f"'messages[{index}].{name}' is not supported by this server: it calls no tools.",
                code="unsupported_parameter",
                param=f"messages[{index}].{name}",
            )
    if kept.get("role") == "assistant" and "content" not in kept:
        kept["content"] = ""
    if isinstance(options := kept.get("content"), list):
        kept["content"] = [
            {k: v for k, v in part.items() if v is not None} if isinstance(part, dict) else part
            for part in options
        ]
    return kept


def _explained(kind: type[BaseModel], error: ValidationError) -> ApiError:
    problems = error.errors(include_url=False)
    # A misspelt field is both unknown and missing; the unknown one says more.
    problem = min(problems, key=lambda one: one["type"] != "extra_forbidden")
    # pydantic adds the names of union members to the path; clients know only their own fields.
    parts = [p for p in problem["loc"] if isinstance(p, int) or str(p).isidentifier()]
    param = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts).lstrip(".")
    if problem["type"] == "extra_forbidden":
        hint = nearest(str(parts[-1]), kind.model_fields).partition("Choices")[0]
        message = f"Unrecognized request argument supplied: {param[:100]}. {hint}".strip()
        return ApiError(400, message, code="unknown_parameter", param=param[:100])
    if problem["type"] == "missing":
        return ApiError(400, f"'{param}' is missing.", code="missing_parameter", param=param)
    return ApiError(400, f"'{param}': {expectation(problem)}.", code="invalid_value", param=param)


def expectation(problem: ErrorDetails) -> str:
    """Return what a field was expected to be, in words of JSON; pydantic's own are Python's."""
    kind, about = problem["type"], problem.get("ctx", {})
    match kind:
        case "too_short" | "string_too_short":
            return f"is empty; expected at least {about['min_length']}"
        case "too_long" | "string_too_long":
            unit = "characters" if kind == "string_too_long" else "items"
            return f"expected at most {about['max_length']} {unit}"
        case "tuple_type" | "list_type":
            text = problem["loc"][-1:] in (("content",), ("stop",))
            return "expected a text or a list" if text else "expected a list"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "expected an object"
        case "union_tag_invalid":
            return f"type is '{about['tag'][:40]}'; expected {about['expected_tags']}"
        case "union_tag_not_found":
            return "has no type"
    said = problem["msg"]
    return f"{said[0].lower()}{said[1:]}"


ASKED: dict[str, tuple[type[BaseModel], str]] = {
    "/v1/chat/completions": (ChatRequest, "Answer a conversation."),
    "/v1/completions": (CompletionRequest, "Continue a text."),
    "/v1/route": (RouteRequest, "Say which group would answer."),
}
READ = {
    "/v1/models": "List models.",
    "/v1/store": "Show groups, tasks and versions.",
    "/healthz": "Whether the process should live.",
    "/readyz": "Whether requests should be sent here.",
}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}


def document() -> dict[str, Any]:
    """Return the document; the schemas are those that requests are read with."""
    models = list(dict.fromkeys(model for model, _ in ASKED.values()))
    _, shared = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Any] = {
        path: {
            "post": {
                "summary": summary,
                "requestBody": {"required": True, "content": _json(_named(model.__name__))},
                "responses": _responses(),
            }
        }
        for path, (model, summary) in ASKED.items()
    }
    paths |= {path: {"get": {"summary": s, "responses": _responses()}} for path, s in READ.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "lcia", "version": "1"},
        "paths": paths,
        "components": {"schemas": {**shared["$defs"], "Error": ERROR}},
    }


def _named(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _responses() -> dict[str, Any]:
    told = {"description": "An error.", "content": _json(_named("Error"))}
    return {"200": {"description": "The answer."}, "4XX": told, "5XX": told}
