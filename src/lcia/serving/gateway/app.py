"""A thin proxy that routes by content, before any OpenAI-compatible server with named adapters."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from lcia.grouping import Said
from lcia.serving.config import AccessConfig
from lcia.serving.gateway.relay import StaleModelError, Try, forward
from lcia.serving.gateway.sync import KEEP_S, Sync
from lcia.serving.gateway.upstreams import Upstream, Upstreams
from lcia.serving.http.api_error import ApiError
from lcia.serving.http.app import READ, add_errors, add_guard, add_models
from lcia.serving.http.body import read_tree
from lcia.serving.http.respond import CLIENT_GONE, ClientGoneError, while_connected
from lcia.serving.http.routing import choose_named, explain
from lcia.serving.http.schemas import RouteRequest, parse, said_in
from lcia.serving.http.service import Monitoring
from lcia.serving.live import ASSISTANT, BASE, LiveStore

FIRST_CHECK_S = 10.0
"""How long the start waits for servers to say what they have."""


@dataclass(frozen=True, kw_only=True)
class GatewayConfig:
    """What ``lcia gateway`` does.

    Attributes:
        upstreams: addresses of the servers.
        access: who may ask.
        upstream_key: the key that the servers want.
        base_model: what they call the model without adapters; None finds it.
        timeout_s: longest silence of a server, in seconds.
        check_s: seconds between two looks at the servers.
        poll_s: seconds between two looks for a new version.
        sync_folder: where the adapters are written that vLLM servers are kept in sync with; None:
            they are left alone.
        sync_seen_as: what the servers call that folder; None: the same.
        sync_keep_s: how long they keep an adapter that nobody wants, in seconds.
    """

    upstreams: Sequence[str]
    access: AccessConfig = field(default_factory=AccessConfig)
    upstream_key: str | None = None
    base_model: str | None = None
    timeout_s: float = 300.0
    check_s: float = 5.0
    poll_s: float = 1.0
    sync_folder: Path | None = None
    sync_seen_as: str | None = None
    sync_keep_s: float = KEEP_S


class Gateway:
    """Routes requests and sends them on.

    Args:
        live: the assistant whose codebook routes; its adapters are served elsewhere.
        config: the gateway's settings.
    """

    def __init__(self, live: LiveStore, *, config: GatewayConfig) -> None:
        self.live = live
        self.config = config
        self.monitoring = Monitoring()
        key = config.upstream_key
        self.client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(config.timeout_s, connect=5.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
            trust_env=False,
        )
        self.upstreams = Upstreams(config.upstreams, self.client, base_model=config.base_model)
        self.sync = config.sync_folder and Sync(
            live,
            self.upstreams,
            self.client,
            folder=config.sync_folder,
            seen_as=config.sync_seen_as,
            keep_s=config.sync_keep_s,
        )
        self.ending = asyncio.Event()
        self._routing = ThreadPoolExecutor(1, thread_name_prefix="lcia-route")
        self.monitoring.watch(
            "upstreams_healthy",
            "Servers that answer.",
            lambda: sum(upstream.healthy for upstream in self.upstreams.all),
        )
        if self.sync:
            text = "Servers that answer and lack an adapter of the version in use."
            self.monitoring.watch("upstreams_behind", text, self.sync.behind)
        self.monitoring.watch("store_version", "Version in use.", lambda: self.live.current.number)

    async def in_thread(self, work: Any, *args: Any) -> Any:
        """Run ``work`` off the event loop; the router is used by one thread."""
        return await asyncio.get_running_loop().run_in_executor(self._routing, work, *args)

    async def send_on(self, request: Request, path: str) -> Response:
        """Route a request and return the answer of the server it goes to.

        Raises:
            ApiError: the request cannot be routed, or no server answers it.
        """
        access = self.config.access
        limit, timeout_s = access.max_body_bytes, access.body_timeout_s
        asked = await read_tree(request, limit=limit, timeout_s=timeout_s)
        model = asked.get("model")
        if not isinstance(model, str):
            raise ApiError(400, "'model' is missing.", code="missing_parameter", param="model")
        routed = model.partition("@")[0] == ASSISTANT
        said = _said(asked) if routed else Said()
        started = time.perf_counter()
        choice = await self.in_thread(choose_named, self.live, model, said)
        self.monitoring.routing_seconds.observe(time.perf_counter() - started)
        adapter = choice.adapter[0] if choice.adapter else None
        past = choice.version != self.live.current.number
        choices = self.upstreams.serving(adapter)
        if self.sync and choice.adapter:
            if past:
                self.sync.keep(choice.adapter[0])
            if not choices:
                await self.sync.lend(*choice.adapter)
                choices = self.upstreams.serving(adapter)
        if not choices and past:
            choices = self.upstreams.with_past(f"{choice.group or BASE}@{choice.version}")
        if not choices:
            raise self._nowhere(adapter)
        self.monitoring.routed.labels(choice.group or BASE, choice.reason).inc()
        tries = [
            self._try(upstream, name, f"{upstream.url}{path}", asked) for upstream, name in choices
        ]
        try:
            return await while_connected(
                request,
                forward(
                    self.upstreams,
                    adapter,
                    tries,
                    client=self.client,
                    headers=choice.headers(),
                    ending=self.ending,
                ),
            )
        except ClientGoneError:
            return Response(status_code=CLIENT_GONE)
        except StaleModelError as error:
            raise self._nowhere(adapter) from error

    def _try(self, upstream: Upstream, name: str, url: str, asked: Mapping[str, Any]) -> Try:
        fields = upstream.addressed(name)
        request = self.client.build_request(
            "POST",
            url,
            content=json.dumps({**asked, **fields}).encode(),
            headers={"Content-Type": "application/json"},
        )
        return Try(upstream, name, fields, request)

    def model_names(self) -> list[str]:
        """Return the models that some server has, and the routed assistant."""
        current = self.live.current
        groups = [
            name
            for name, group in current.names.items()
            if self.upstreams.serving(current.adapters[group][0])
        ]
        return [ASSISTANT, *groups, *([BASE] if self.upstreams.serving(None) else [])]

    async def stop(self) -> None:
        """Close connections and threads."""
        await self.client.aclose()
        self._routing.shutdown()

    def _nowhere(self, adapter: str | None) -> ApiError:
        if not any(upstream.healthy for upstream in self.upstreams.all):
            text = "No server behind this gateway is well; try again later."
        else:
            wanted = f"'{adapter or BASE}'"
            if adapter in [key for key, _ in self.live.current.adapters.values()]:
                wanted += f", which version {self.live.current.number} wants"
            text = f"No server behind this gateway has {wanted}. " + (
                "It is being loaded, or cannot be: the gateway's log says which."
                if self.sync
                else "Export the version that has it and load it there."
            )
        return ApiError(503, text, code="no_upstream", headers={"Retry-After": "5"})


def build_gateway(gateway: Gateway) -> FastAPI:
    """Return the ASGI application of a gateway."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.wait(
            [asyncio.ensure_future(gateway.upstreams.check(u)) for u in gateway.upstreams.all],
            timeout=FIRST_CHECK_S,
        )
        following = [
            asyncio.create_task(gateway.upstreams.follow(gateway.config.check_s)),
            asyncio.create_task(gateway.live.follow(gateway.config.poll_s)),
        ]
        if gateway.sync:
            gateway.sync.start()
            following.append(asyncio.create_task(gateway.sync.follow(gateway.config.check_s)))
        yield
        for task in following:
            task.cancel()
        await gateway.stop()

    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    add_errors(app)

    @app.post("/v1/chat/completions")
    @app.post("/v1/completions")
    @app.post("/v1/responses")
    @app.post("/v1/messages")
    async def generate(request: Request) -> Response:
        return await gateway.send_on(request, request.url.path)

    @app.post("/v1/route")
    async def route(request: Request) -> Response:
        access = gateway.config.access
        tree = await read_tree(
            request, limit=access.max_body_bytes, timeout_s=access.body_timeout_s
        )
        said = said_in(parse(RouteRequest, tree).messages)
        return JSONResponse(await gateway.in_thread(explain, gateway.live.current, said))

    def records() -> list[dict[str, Any]]:
        created = gateway.live.current.created
        return [
            {"id": name, "object": "model", "created": created, "owned_by": "lcia"}
            for name in gateway.model_names()
        ]

    add_models(app, gateway.live, records)

    @app.api_route("/healthz", methods=READ)
    async def healthz() -> Response:
        return JSONResponse({"status": "ok"})

    @app.api_route("/readyz", methods=READ)
    async def readyz() -> Response:
        healthy = [upstream.url for upstream in gateway.upstreams.all if upstream.healthy]
        if not healthy:
            raise ApiError(503, "No server behind this gateway is well.", code="no_upstream")
        return JSONResponse({"status": "ready", "upstreams": len(healthy)})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(gateway.monitoring.page(), media_type=CONTENT_TYPE_LATEST)

    add_guard(app, gateway.config.access, gateway.monitoring)
    app.state.end = gateway.ending.set
    return app


def _said(asked: Mapping[str, Any]) -> Said:
    """Return what a request says to the model, in the words of any of the four endpoints.

    ``messages``, with ``system`` beside them in Anthropic's form; ``input`` with ``instructions``;
    or ``prompt``. Other fields are the server's business, and are not looked at.

    Raises:
        ApiError: 400, there is no text of a user.
    """
    texts = next((asked[key] for key in ("prompt", "input") if key in asked), None)
    texts = [texts] if isinstance(texts, str) else texts if isinstance(texts, list) else []
    if texts and all(isinstance(text, str) for text in texts):
        if len(texts) > 1:
            raise ApiError(
                400,
                "'prompt' has several texts, which may belong to different groups; send them one "
                "by one, or name a group.",
                code="invalid_value",
                param="prompt",
            )
        turns = [("user", texts[0])]
    else:
        given = asked.get("messages", texts)
        turns = [
            (str(turn.get("role")), _text(turn.get("content")))
            for turn in (given if isinstance(given, list) else ())
            if isinstance(turn, dict)
        ]
    told = [("system", _text(asked[key])) for key in ("system", "instructions") if key in asked]
    said = Said.by([*told, *turns])
    if not said.turns:
        raise ApiError(
            400,
            "There is nothing to route by; expected 'messages' with a turn of the user, or one "
            "text in 'prompt' or 'input'.",
            code="invalid_messages",
            param="messages",
        )
    return said


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else ()
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    return "\n".join(text for text in texts if isinstance(text, str))
