"""The configuration tree: what a stream file, ``--set`` and the Python API may say."""

from lcia.config.assistant import (
    ADAPTER_DEFAULTS,
    BEFORE,
    TRAINING_DEFAULTS,
    AssistantConfig,
    GateConfig,
    GenerationConfig,
    check_adapter,
    check_training,
)
from lcia.config.parsing import parse_config
from lcia.config.stream import StreamConfig, load_stream_config

__all__ = [
    "ADAPTER_DEFAULTS",
    "BEFORE",
    "TRAINING_DEFAULTS",
    "AssistantConfig",
    "GateConfig",
    "GenerationConfig",
    "StreamConfig",
    "check_adapter",
    "check_training",
    "load_stream_config",
    "parse_config",
]
