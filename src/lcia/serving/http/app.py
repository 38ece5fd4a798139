"""The server's endpoints."""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from lcia.errors import LciaError, StoreError
from lcia.serving.config import AccessConfig
from lcia.serving.http.api_error import ApiError, api_error
from lcia.serving.http.body import read_tree
from lcia.serving.http.guard import Guard
from lcia.serving.http.respond import respond
from lcia.serving.http.schemas import (
    ChatRequest,
    CompletionRequest,
    RouteRequest,
    document,
    parse,
    parse_completions,
    said_in,
)
from lcia.serving.http.service import Monitoring, Service
from lcia.serving.http.shapes import ChatShape, CompletionShape, Shape
from lcia.serving.live import ASSISTANT, BASE, LiveStore, Snapshot
from lcia.serving.page.endpoints import add_page

logger = logging.getLogger(__name__)

READ = ["GET", "HEAD"]
"""Methods of what only tells something; probes often ask with HEAD."""


def build_app(service: Service, more: Callable[[FastAPI], None] | None = None) -> FastAPI:
    """Return the ASGI application of an assistant.

    Args:
        service: answers.
        more: adds further endpoints, guarded as these are.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.answers.start()
        following = asyncio.create_task(service.live.follow(service.config.poll_s))
        yield
        following.cancel()
        await service.stop()

    # No documentation pages: FastAPI's load scripts from other servers.
    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    add_errors(app)
    _add_openai(app, service)
    _add_operations(app, service)
    add_page(app, service.live, feedback=service.keep_receipts is not None)
    if more is not None:
        more(app)
    add_guard(app, service.config.access, service.monitoring)
    app.state.end = lambda: asyncio.ensure_future(service.answers.stop())
    return app


def add_guard(app: FastAPI, access: AccessConfig, monitoring: Monitoring) -> None:
    """Let only those in who may ask, and count every request."""
    paths = {getattr(route, "path", None) for route in app.routes}

    def observe(path: str, status: int, seconds: float) -> None:
        label = path if path in paths else "other"
        monitoring.requests.labels(label, str(status)).inc()
        monitoring.request_seconds.labels(label).observe(seconds)

    app.add_middleware(Guard, keys=access.keys(), observe=observe)
    if access.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=access.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["*"],
            max_age=600,
        )


def add_errors(app: FastAPI) -> None:
    """Answer every error in OpenAI's form."""

    @app.exception_handler(ApiError)
    @app.exception_handler(LciaError)
    async def known(request: Request, error: Exception) -> Response:
        told = api_error(error)
        if told.param == "messages" and request.url.path == "/v1/completions":
            told.param = "prompt"
        if told.status >= 500:
            logger.error("%s: %s", type(error).__name__, error)
        return told.response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        path = f"{request.method} {request.url.path[:200]}"
        message = {404: f"There is no {path}.", 405: f"{path} is not allowed."}
        text = message.get(error.status_code, str(error.detail))
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http")
        headers = dict(error.headers or {})
        return ApiError(error.status_code, text, code=code, headers=headers).response()

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> Response:
        return api_error(error).response()


def _add_openai(app: FastAPI, service: Service) -> None:
    async def tree(request: Request) -> dict[str, Any]:
        access = service.config.access
        return await read_tree(
            request, limit=access.max_body_bytes, timeout_s=access.body_timeout_s
        )

    async def answer(
        request: Request, asked: Sequence[ChatRequest | CompletionRequest], kind: type[Shape]
    ) -> Response:
        prepared = await service.prepare_all(asked)
        identity = uuid.uuid4().hex
        shapes = [
            kind(
                id=identity,
                model=asked[0].model,
                choice=one.choice,
                prompt_tokens=len(one.prompt.ids),
                index=index,
            )
            for index, one in enumerate(prepared)
        ]
        return await respond(
            request,
            service,
            list(zip(prepared, shapes, strict=True)),
            stream=bool(asked[0].stream),
            usage=asked[0].include_usage,
        )

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await answer(request, [parse(ChatRequest, await tree(request))], ChatShape)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answer(request, parse_completions(await tree(request)), CompletionShape)

    @app.post("/v1/route")
    async def route(request: Request) -> Response:
        asked = parse(RouteRequest, await tree(request))
        return JSONResponse(await service.explain(said_in(asked.messages)))

    def records() -> list[dict[str, Any]]:
        current = service.live.current
        names = [ASSISTANT, *current.names, BASE]
        return [model_record(name, current, name) for name in names]

    add_models(app, service.live, records)


def model_record(name: str, snapshot: Snapshot, plain: str) -> dict[str, Any]:
    """Return what is told of a model.

    Args:
        name: as clients write it.
        snapshot: the version that answers.
        plain: the name without a version.
    """
    record = {"id": name, "object": "model", "created": snapshot.created, "owned_by": "lcia"}
    group = snapshot.names.get(plain) or snapshot.pinned.get(plain)
    return {**record, "root": snapshot.adapters[group][0]} if group else record


def add_models(app: FastAPI, live: LiveStore, records: Callable[[], list[dict[str, Any]]]) -> None:
    """List models, and show each of them by its name, which may hold slashes or a version."""

    def pinned(name: str) -> list[dict[str, Any]]:
        try:
            snapshot, plain = live.named(name)
        except StoreError:
            return []
        known = plain in (ASSISTANT, BASE) or plain in snapshot.names or plain in snapshot.pinned
        with_version = plain != name or plain in snapshot.pinned
        return [model_record(name, snapshot, plain)] if known and with_version else []

    @app.api_route("/v1/models", methods=READ)
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": records()})

    @app.api_route("/v1/models/{name:path}", methods=READ)
    async def model(name: str) -> Response:
        found = [record for record in records() if record["id"] == name]
        found = found or await asyncio.to_thread(pinned, name)
        if not found:
            raise ApiError(
                404,
                f"The model {name[:100]!r} does not exist.",
                code="model_not_found",
                param="model",
            )
        return JSONResponse(found[0])


def _add_operations(app: FastAPI, service: Service) -> None:
    described = document()

    @app.api_route("/openapi.json", methods=READ)
    async def openapi() -> Response:
        return JSONResponse(described)

    @app.api_route("/healthz", methods=READ)
    async def healthz() -> Response:
        """Whether the process should live."""
        return JSONResponse({"status": "ok"})

    @app.api_route("/readyz", methods=READ)
    async def readyz() -> Response:
        """Whether requests should be sent here."""
        if not service.answers.engine.alive:
            raise ApiError(503, "The engine is not running.", code="not_ready")
        return JSONResponse({"status": "ready", "version": service.live.current.number})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.monitoring.page(), media_type=CONTENT_TYPE_LATEST)
