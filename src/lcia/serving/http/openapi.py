"""What the server takes, as an OpenAPI document: for programs that make clients or tests of it."""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from lcia.serving.http.schemas import ChatRequest, CompletionRequest, RouteRequest

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
