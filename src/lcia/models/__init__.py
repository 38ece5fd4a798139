"""Base models: where they come from, how text becomes tokens, adapters on top."""

from lcia.models.chat import ChatFormat, Example
from lcia.models.host import AdapterHost
from lcia.models.loading import (
    BaseModel,
    check_model,
    content_hash,
    load_model,
    resolve_dtype,
)

__all__ = [
    "AdapterHost",
    "BaseModel",
    "ChatFormat",
    "Example",
    "check_model",
    "content_hash",
    "load_model",
    "resolve_dtype",
]
