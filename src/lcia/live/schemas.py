"""What clients may send about files, jobs and answers, read strictly."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lcia.serving.http.api_error import ApiError
from lcia.serving.http.schemas import expectation

Auto = Literal["auto"]
Text = Annotated[str, Field(min_length=1, max_length=100_000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Asked = TypeVar("Asked", bound=_Strict)


class Hyperparameters(_Strict):
    """How a job learns; ``auto``: as the assistant does."""

    n_epochs: Auto | Annotated[int, Field(ge=1, le=1000)] = "auto"
    batch_size: Auto | Annotated[int, Field(ge=1, le=1024)] = "auto"
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, le=1000, strict=False)] = "auto"


class Supervised(_Strict):
    """Settings of supervised learning."""

    hyperparameters: Hyperparameters = Hyperparameters()


class Method(_Strict):
    """How is learned: from given answers, and in no other way."""

    type: Literal["supervised"]
    supervised: Supervised = Supervised()


class JobRequest(_Strict):
    """``POST /v1/fine_tuning/jobs``."""

    model: str
    training_file: str
    validation_file: str | None = None
    hyperparameters: Hyperparameters | None = None
    method: Method | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    metadata: (
        Annotated[
            dict[
                Annotated[str, Field(max_length=64)],
                Annotated[str, Field(max_length=512)],
            ],
            Field(max_length=16),
        ]
        | None
    ) = None
    integrations: Annotated[tuple[Any, ...], Field(max_length=0, strict=False)] | None = None

    @property
    def asked(self) -> Hyperparameters:
        """The settings: ``method`` says them now, ``hyperparameters`` did before."""
        if self.method is not None:
            return self.method.supervised.hyperparameters
        return self.hyperparameters or Hyperparameters()


class Turn(_Strict):
    """One turn of the conversation that was answered."""

    role: Literal["system", "user", "assistant"]
    content: Text


class FeedbackRequest(_Strict):
    """``POST /v1/feedback``."""

    id: Annotated[str, Field(min_length=1, max_length=200)]
    rating: Literal[1, -1] | None = None
    correction: Text | None = None
    comment: Text | None = None
    prompt: Text | Annotated[tuple[Turn, ...], Field(min_length=1, strict=False)] | None = None

    @property
    def turns(self) -> list[dict[str, str]] | None:
        """The conversation that was answered, if it was sent."""
        if self.prompt is None:
            return None
        if isinstance(self.prompt, str):
            return [{"role": "user", "content": self.prompt}]
        return [turn.model_dump() for turn in self.prompt]


class ReleaseRequest(_Strict):
    """``POST /v1/lcia/releases/{number}/promote`` and ``/rollback``; all may be left out."""

    reason: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    force: bool = False


class EditRequest(_Strict):
    """``POST /v1/lcia/inbox/{id}/edit``."""

    correction: Text
    prompt: Text | None = None


class LearnRequest(_Strict):
    """``POST /v1/lcia/inbox/learn``."""

    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    n_epochs: Auto | Annotated[int, Field(ge=1, le=1000)] = "auto"


def parse(kind: type[Asked], tree: Mapping[str, Any]) -> Asked:
    """Read a request; a field that is null is absent.

    Raises:
        ApiError: 400, and the field that is at fault.
    """
    try:
        return kind.model_validate({k: v for k, v in tree.items() if v is not None})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ApiError(
            400, f"'{place}': {expectation(first)}.", code="invalid_value", param=place or None
        ) from error
