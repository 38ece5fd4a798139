"""What clients may ask: OpenAI's requests, read strictly."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from lcia.registry import nearest
from lcia.serving.http.api_error import ApiError

# Fields that would change the answer in a way lcia does not offer, and values that ask for nothing.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "prediction": (),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "web_search_options": (),
}
# Fields that do not change the answer.
IGNORED = {
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TextPart(_Strict):
    """Text in a message of several parts."""

    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    """Where a picture is: a data URL, or an address if the server fetches pictures."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Strict):
    """A picture in a message of several parts."""

    type: Literal["image_url"]
    image_url: ImageUrl


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Parts = Annotated[tuple[Part, ...], BeforeValidator(_as_parts), Field(min_length=1, strict=False)]
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
        """Where the turn's pictures are."""
        return tuple(p.image_url.url for p in self.content if isinstance(p, ImagePart))

    @property
    def image_places(self) -> tuple[int, ...]:
        """How many characters of the turn's text stand before each of its pictures."""
        places, texts = [], 0
        for part in self.content:
            if isinstance(part, TextPart):
                texts += len(part.text) + 1  # the line break after it
            else:
                places.append(max(0, texts - 1))
        return tuple(places)


Messages = Annotated[tuple[ChatMessage, ...], Field(min_length=1, strict=False)]


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
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
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


class CompletionRequest(GenerationRequest):
    """``POST /v1/completions``: text that the model continues, without its chat template."""

    prompt: Annotated[str, Field(min_length=1)]

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


def user_turns(messages: Sequence[ChatMessage]) -> list[str]:
    """Return what the user wrote.

    Raises:
        ApiError: nothing.
    """
    turns = [message.text for message in messages if message.role == "user"]
    if not turns:
        raise ApiError(
            400, "'messages' has no turn of the user.", code="invalid_messages", param="messages"
        )
    return turns


Request = TypeVar("Request", bound=_Strict)


def read_object(body: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ApiError: 400, it is none.
    """
    try:
        tree = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"The body is not JSON: {error}.", code="invalid_json") from error
    if not isinstance(tree, dict):
        found = type(tree).__name__
        raise ApiError(400, f"The body is a JSON {found}; expected an object.", code="invalid_json")
    return tree


def parse(kind: type[Request], body: bytes) -> Request:
    """Read a request.

    Raises:
        ApiError: 400, and the field that is at fault.
    """
    tree = read_object(body)
    fields = {name: value for name, value in tree.items() if name not in IGNORED}
    for name, neutral in REFUSED.items():
        if name in fields and fields.pop(name) not in (None, *neutral):
            raise ApiError(
                400,
                f"'{name}' is not supported by this server; leave it out.",
                code="unsupported_parameter",
                param=name,
            )
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _explained(kind, error) from error


def _explained(kind: type[BaseModel], error: ValidationError) -> ApiError:
    problems = error.errors(include_url=False, include_context=False)
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
    said = problem["msg"].replace("a valid tuple", "a list")
    message = f"'{param}': {said[0].lower()}{said[1:]}."
    return ApiError(400, message, code="invalid_value", param=param)
