"""Errors in the form OpenAI clients understand."""

from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse

from lcia.errors import StoreError
from lcia.serving.engine.limits import (
    AdapterRemovedError,
    CacheTooSmallError,
    DeviceMemoryError,
    GenerationFailedError,
    GenerationTimeoutError,
    PromptError,
    PromptTooLongError,
    QueueFullError,
    ShuttingDownError,
)
from lcia.serving.engine.sampling import NotFiniteError


class ApiError(Exception):
    """A request that is not answered, and why.

    Args:
        status: HTTP status.
        message: what was expected, what was found, what to do.
        code: stable, for programs.
        param: the field of the request that is at fault.
        headers: more response headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the error as OpenAI writes it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 429:
            kind = "rate_limit_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        """Return the error as a response."""
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def api_error(error: Exception) -> ApiError:
    """Return how an error is told to a client; what is not meant for it stays in the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        retry = {"Retry-After": str(error.retry_after_s)}
        return ApiError(429, str(error), code="rate_limit_exceeded", headers=retry)
    if isinstance(error, GenerationTimeoutError):
        return ApiError(504, str(error), code="timeout")
    if isinstance(error, ShuttingDownError):
        return ApiError(503, str(error), code="shutting_down", headers={"Retry-After": "1"})
    if isinstance(error, (PromptTooLongError, CacheTooSmallError)):
        return ApiError(400, str(error), code="context_length_exceeded", param="messages")
    if isinstance(error, PromptError):
        return ApiError(400, str(error), code="invalid_value", param="prompt")
    if isinstance(error, DeviceMemoryError):
        return ApiError(503, str(error), code="out_of_memory", headers={"Retry-After": "1"})
    if isinstance(error, NotFiniteError):
        return ApiError(500, str(error), code="not_finite")
    if isinstance(error, GenerationFailedError):
        said = "The model failed; the server's log says why."
        return ApiError(500, said, code="generation_failed")
    if isinstance(error, AdapterRemovedError):
        return ApiError(503, str(error), code="version_pruned", headers={"Retry-After": "1"})
    if isinstance(error, StoreError):
        said = "The adapter cannot be used; the server's log says why."
        return ApiError(500, said, code="store")
    return ApiError(500, "The server failed; its log says why.", code="internal")
