"""LoRA adapters stacked along the rank: their sum as one plain LoRA."""

from collections.abc import Mapping
from typing import Any

from lcia.errors import ConfigError


def stacked(adapter: Mapping[str, Any], times: int) -> Any:
    """Return the ``peft.LoraConfig`` of ``times`` LoRAs as one: A = [A_1; A_2; ...], B likewise.

    Rank and ``lora_alpha`` grow alike, so that the scale lora_alpha / r of each part stays.

    Args:
        adapter: ``LoraConfig`` of one part, with ``r`` and ``lora_alpha``.
        times: how many parts.

    Raises:
        ConfigError: ``use_rslora``, whose parts do not add up.
    """
    from peft import LoraConfig

    if adapter.get("use_rslora"):
        raise ConfigError(
            "adapter.use_rslora is set; olora stacks LoRAs whose scale is lora_alpha / r. "
            "Remove it."
        )
    patterns = {
        key: {name: times * value for name, value in adapter[key].items()}
        for key in ("rank_pattern", "alpha_pattern")
        if key in adapter
    }
    sizes = {key: times * adapter[key] for key in ("r", "lora_alpha")}
    return LoraConfig(**{**adapter, **patterns, **sizes})


def rank_dim(name: str) -> int | None:
    """Return which dimension of a parameter is the rank, by its name: A's 0, B's 1, else None."""
    dims = {"lora_A": 0, "lora_embedding_A": 0, "lora_B": 1, "lora_embedding_B": 1}
    return next((dims[part] for part in name.split(".") if part in dims), None)
