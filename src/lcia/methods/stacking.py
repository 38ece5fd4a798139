"""LoRA adapters stacked along the rank: their sum as one plain LoRA."""

from collections.abc import Mapping
from typing import Any

from lcia.errors import ConfigError

NOT_STACKABLE = ("use_dora", "use_rslora", "lora_bias")


def stacked(adapter: Mapping[str, Any], times: int) -> Any:
    """Return the ``peft.LoraConfig`` of ``times`` LoRAs as one: A = [A_1; A_2; ...], B likewise.

    Rank and ``lora_alpha`` grow alike, so that the scale lora_alpha / r of each part stays.

    Args:
        adapter: ``LoraConfig`` of one part, with ``r`` and ``lora_alpha``.
        times: how many parts.

    Raises:
        ConfigError: a variant of LoRA whose parts do not add up.
    """
    from peft import LoraConfig

    for variant in NOT_STACKABLE:
        if adapter.get(variant):
            raise ConfigError(
                f"adapter.{variant} is set; olora and moelora stack plain LoRA only. Remove it."
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
