"""The configuration tree: what a stream file, ``--set`` and the Python API may say."""

from lcia.config.assistant import (
    ADAPTER_DEFAULTS,
    BEFORE,
    RENAMED,
    TRAINING_DEFAULTS,
    AssistantConfig,
    GateConfig,
    GenerationConfig,
    check_adapter,
    check_training,
    todays_names,
)
from lcia.config.parsing import parse_config
from lcia.config.stream import StreamConfig, load_stream_config

__all__ = [
    "ADAPTER_DEFAULTS",
    "BEFORE",
    "RENAMED",
    "TRAINING_DEFAULTS",
    "AssistantConfig",
    "GateConfig",
    "GenerationConfig",
    "StreamConfig",
    "check_adapter",
    "check_training",
    "load_stream_config",
    "parse_config",
    "todays_names",
]
