"""Dynamic EMA inside other people's training loops."""

from lcia.integrations.transformers import DynamicEMACallback

__all__ = ["DynamicEMACallback"]
