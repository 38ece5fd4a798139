"""Endpoints: files and fine-tuning jobs as OpenAI describes them, and what clients may send.

Requests are read strictly. Handlers read and answer; what touches the database runs on a thread.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from io import BytesIO
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart import parse_form
from python_multipart.exceptions import FormParserError

from lcia.errors import DataError
from lcia.learner import Store
from lcia.live.data_files import FINE_TUNE, DataFiles, NoFileError
from lcia.live.database import Database
from lcia.live.inbox import NoFeedbackError, NoReceiptError
from lcia.live.jobs import Job, Jobs, NoJobError
from lcia.live.orders import OrderError, order
from lcia.serving.config import AccessConfig
from lcia.serving.http.api_error import ApiError
from lcia.serving.http.body import read_raw, read_tree
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


UPLOAD_BYTES = 32 << 20
FIELDS = 8
"""Parts of an upload."""

T = TypeVar("T")


def add_files(app: FastAPI, access: AccessConfig, files: DataFiles) -> None:
    """Upload, list, show and remove files."""

    @app.post("/v1/files")
    async def upload(request: Request) -> Response:
        check_origin(request, access)
        body = await read_raw(request, limit=UPLOAD_BYTES, timeout_s=access.body_timeout_s)
        return await answered(lambda: _keep(files, request.headers.get("content-type", ""), body))

    @app.get("/v1/files")
    async def listed(request: Request) -> Response:
        limit, query = limit_of(request, default=10_000), request.query_params
        newest = query.get("order", "desc") != "asc"
        return await answered(
            lambda: page_of(
                *files.listed(
                    purpose=query.get("purpose"),
                    after=query.get("after"),
                    limit=limit,
                    newest=newest,
                )
            )
        )

    @app.get("/v1/files/{file}")
    async def retrieve(file: str) -> Response:
        return await answered(lambda: files.get(file))

    @app.get("/v1/files/{file}/content")
    async def content(file: str) -> Response:
        found = await on_thread(lambda: files.content(file))
        return Response(found, media_type="application/octet-stream")

    @app.delete("/v1/files/{file}")
    async def delete(file: str) -> Response:
        await on_thread(lambda: files.delete(file))
        return JSONResponse({"id": file, "object": "file", "deleted": True})


def add_jobs(app: FastAPI, access: AccessConfig, store: Store, database: Database) -> None:
    """Order, list and steer fine-tuning jobs."""
    jobs, files = Jobs(database), DataFiles(database)
    base = "/v1/fine_tuning/jobs"

    @app.post(base)
    async def create(request: Request) -> Response:
        asked = parse(JobRequest, await tree(request, access))
        return await answered(lambda: job_record(_order(store, files, jobs, asked)))

    @app.get(base)
    async def listed(request: Request) -> Response:
        limit, query = limit_of(request, default=20), request.query_params
        wanted = {
            name[len("metadata[") : -1]: value
            for name, value in query.items()
            if name.startswith("metadata[") and name.endswith("]")
        }

        def page() -> dict[str, Any]:
            found, more = jobs.listed(after=query.get("after"), limit=limit, metadata=wanted)
            return page_of([job_record(job) for job in found], more)

        return await answered(page)

    @app.get(base + "/{job}")
    async def retrieve(job: str) -> Response:
        return await answered(lambda: job_record(jobs.get(job)))

    def add_action(name: str, act: Callable[[str], Job]) -> None:
        @app.post(base + "/{job}/" + name)
        async def action(job: str, request: Request) -> Response:
            check_origin(request, access)
            return await answered(lambda: job_record(act(job)))

    for name, act in (("cancel", jobs.cancel), ("pause", jobs.pause), ("resume", jobs.resume)):
        add_action(name, act)

    @app.get(base + "/{job}/events")
    async def events(job: str, request: Request) -> Response:
        limit, after = limit_of(request, default=20), request.query_params.get("after")

        def page() -> dict[str, Any]:
            found, more = jobs.events(job, after=after, limit=limit)
            return page_of([event_record(event) for event in found], more)

        return await answered(page)


def job_record(job: Job) -> dict[str, Any]:
    """Return a job as OpenAI writes it."""
    return {
        "object": "fine_tuning.job",
        "id": job["id"],
        "created_at": job["created_at"],
        "finished_at": job["finished_at"],
        "estimated_finish": job["eta"],
        "model": job["model"],
        "fine_tuned_model": None if job["version"] is None else f"assistant@{job['version']}",
        "organization_id": "lcia",
        "status": job["status"],
        "training_file": job["training_file"],
        "validation_file": job["validation_file"],
        "result_files": [job["result_file"]] if job["result_file"] else [],
        "trained_tokens": job["trained_tokens"],
        "error": job["error"],
        "hyperparameters": job["hyperparameters"],
        "method": {
            "type": "supervised",
            "supervised": {"hyperparameters": job["hyperparameters"]},
        },
        "seed": job["seed"],
        "integrations": [],
        "metadata": job["metadata"],
        "user_provided_suffix": job["task"],
    }


def event_record(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return an event of a job as OpenAI writes it."""
    told = {name: event[name] for name in ("created_at", "level", "message", "type", "data")}
    return {"object": "fine_tuning.job.event", "id": f"ftevent-{event['number']}", **told}


def _order(store: Store, files: DataFiles, jobs: Jobs, asked: JobRequest) -> Job:
    """Put a job into the queue, after checking all that it names."""
    for param in ("training_file", "validation_file"):
        if (file := getattr(asked, param)) is None:
            continue
        try:
            found = files.get(file)
        except NoFileError as error:
            raise OrderError(f"'{param}': {error}", param=param) from error
        if found["purpose"] != FINE_TUNE:
            raise OrderError(
                f"'{param}': {file} is of purpose {found['purpose']!r}; expected 'fine-tune'.",
                param=param,
            )
    fields = order(
        store,
        model=asked.model,
        task=asked.suffix,
        seed=asked.seed,
        hyperparameters=asked.asked.model_dump(),
        metadata=asked.metadata,
    )
    return jobs.create(
        **fields, training_file=asked.training_file, validation_file=asked.validation_file
    )


def _keep(files: DataFiles, kind: str, body: bytes) -> dict[str, Any]:
    """Keep the file of a form."""
    fields: dict[str, str] = {}
    found: list[tuple[str, bytes]] = []
    opened = ExitStack()  # earlier versions of the parser still need a file after on_file

    def on_field(field: Any) -> None:
        name = (field.field_name or b"").decode(errors="replace")
        fields[name] = (field.value or b"").decode(errors="replace")
        if len(fields) > FIELDS:
            raise ApiError(400, "The form has too many fields.", code="invalid_form")

    def on_file(file: Any) -> None:
        file.file_object.seek(0)
        name = (file.file_name or b"file.jsonl").decode(errors="replace")
        found.append((name, file.file_object.read()))
        opened.callback(file.close)

    if not kind.lower().startswith("multipart/form-data"):
        raise ApiError(
            415,
            f"Content-Type is {kind[:50]!r}; expected multipart/form-data.",
            code="content_type",
        )
    headers: dict[str, Any] = {"Content-Type": kind.encode()}
    try:
        with opened:
            parse_form(headers, BytesIO(body), on_field, on_file)
    except (FormParserError, ValueError) as error:
        raise ApiError(400, f"The form cannot be read: {error}", code="invalid_form") from error
    if len(found) != 1:
        raise ApiError(
            400, f"Found {len(found)} files; expected one.", code="invalid_form", param="file"
        )
    if fields.get("purpose") != FINE_TUNE:
        raise ApiError(
            400,
            f"'purpose' is {fields.get('purpose', '')[:50]!r}; expected 'fine-tune'.",
            code="invalid_value",
            param="purpose",
        )
    try:
        return files.add(*found[0])
    except DataError as error:
        raise ApiError(400, str(error), code="invalid_file", param="file") from error


async def tree(request: Request, access: AccessConfig) -> dict[str, Any]:
    """Return the JSON object that a client sent."""
    return await read_tree(request, limit=access.max_body_bytes, timeout_s=access.body_timeout_s)


async def answered(work: Callable[[], dict[str, Any]]) -> Response:
    """Answer with what ``work`` returns, done on a thread."""
    return JSONResponse(await on_thread(work))


async def on_thread(work: Callable[[], T]) -> T:
    """Return what ``work`` returns; what it refuses is told as OpenAI tells it."""
    try:
        return await asyncio.to_thread(work)
    except NoFileError as error:
        raise ApiError(404, str(error), code="not_found", param="id") from error
    except NoJobError as error:
        param = "fine_tuning_job_id"
        raise ApiError(404, str(error), code="fine_tune_not_found", param=param) from error
    except (NoReceiptError, NoFeedbackError) as error:
        raise ApiError(404, str(error), code="not_found", param="id") from error
    except OrderError as error:
        code = "model_not_found" if error.param == "model" else "invalid_value"
        raise ApiError(400, str(error), code=code, param=error.param) from error
    except DataError as error:
        raise ApiError(400, str(error), code="invalid_value") from error


def page_of(rows: Sequence[Mapping[str, Any]], more: bool) -> dict[str, Any]:
    """Return a page of a list as OpenAI writes it."""
    ends = {"first_id": rows[0]["id"], "last_id": rows[-1]["id"]} if rows else {}
    nobody = {"first_id": None, "last_id": None}
    return {"object": "list", "data": list(rows), "has_more": more, **(ends or nobody)}


def limit_of(request: Request, *, default: int) -> int:
    """Return how many rows a client wants.

    Raises:
        ApiError: 400, it is no number from 1 to 10000.
    """
    found = request.query_params.get("limit", str(default))
    if not (found.isascii() and found.isdigit() and 1 <= int(found[:6]) <= 10_000):
        raise ApiError(
            400, "'limit': expected a number from 1 to 10000.", code="invalid_value", param="limit"
        )
    return int(found)


def check_origin(request: Request, access: AccessConfig) -> None:
    """Refuse what a web page of another site sends: a browser asks nobody before such a request.

    Raises:
        ApiError: 403, the page is of another site.
    """
    origin = request.headers.get("origin")
    allowed = {"*", origin} & set(access.cors_origins)
    if (
        origin is not None
        and not allowed
        and urlsplit(origin).netloc != request.headers.get("host")
    ):
        raise ApiError(
            403, f"Web pages of {origin[:100]!r} may not ask here.", code="origin_not_allowed"
        )
