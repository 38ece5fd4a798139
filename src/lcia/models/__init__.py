"""Base models: where they come from, how text becomes tokens, adapters on top."""

from lcia.data.wheels import cache_dir
from lcia.models.chat import ChatFormat, Example
from lcia.models.embedded import EMBEDDED, EmbeddedModel, is_prepared, prepare
from lcia.models.host import AdapterHost
from lcia.models.loading import (
    BaseModel,
    check_model,
    content_hash,
    describe_models,
    load_model,
    resolve_dtype,
)

__all__ = [
    "EMBEDDED",
    "AdapterHost",
    "BaseModel",
    "ChatFormat",
    "EmbeddedModel",
    "Example",
    "cache_dir",
    "check_model",
    "content_hash",
    "describe_models",
    "is_prepared",
    "load_model",
    "prepare",
    "resolve_dtype",
]
