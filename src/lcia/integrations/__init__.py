"""Dynamic EMA inside other people's training loops."""

from lcia.integrations.deepspeed import DeepSpeedEMA, DeepSpeedMerge
from lcia.integrations.transformers import DynamicEMACallback, PrecisionMergeCallback

__all__ = ["DeepSpeedEMA", "DeepSpeedMerge", "DynamicEMACallback", "PrecisionMergeCallback"]
