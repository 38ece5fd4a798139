"""A mixture of LoRA experts with an expert router for every token."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from transformers import TrainerCallback

from lcia.errors import ConfigError
from lcia.integrations.transformers import checkpoint_folder
from lcia.methods.base import Method, TaskContext
from lcia.models.host import TRAINED
from lcia.models.lora import add_expert_routers, restore_expert_routers, save_expert_routers


class MoELoRA(Method):
    """Every adapted module has ``experts`` LoRAs, mixed by softmax(W x); all tasks train all.

    The configured rank r is that of all experts together: each has r / experts, scaled by
    lora_alpha / r, so that the method has as many parameters as a LoRA of rank r. Stored as a plain
    adapter with W in ``gates.safetensors`` beside it: loaded by stock peft alone, the experts are
    summed, which is ``experts`` times their mean.

    Source: the MoELoRA baseline of CoIN, arXiv:2403.08350. Differs: W starts at 0.
    """

    sharded: ClassVar[bool] = False
    settings: ClassVar[dict[str, Any]] = {"experts": 4}

    def open(self, host: Any, start: Path | None, adapter: Mapping[str, Any]) -> Any:
        """Put the experts and their routers on the model.

        Raises:
            ConfigError: a rank is no multiple of the number of experts.
        """
        if start is not None:
            return host.adapter_to_train(start)
        from peft import LoraConfig

        experts = self.config["experts"]
        _check_ranks(adapter, experts)
        model = host.new_adapter(LoraConfig(**adapter))
        add_expert_routers(model, experts=experts, adapter=TRAINED)
        return model

    def attach(self, trainer: Any, context: TaskContext) -> None:
        """Let the expert routers travel with Trainer's checkpoints."""
        trainer.add_callback(_Checkpointed(trainer.model))


def _check_ranks(adapter: Mapping[str, Any], experts: int) -> None:
    ranks = {"adapter.r": adapter["r"]}
    patterns = adapter.get("rank_pattern") or {}
    ranks |= {f"adapter.rank_pattern.{name}": rank for name, rank in patterns.items()}
    for key, rank in ranks.items():
        if rank % experts:
            raise ConfigError(
                f"{key} is {rank}; moelora shares it among {experts} experts. Make it a multiple "
                f"of {experts}, such as {rank + -rank % experts}, or change method.experts."
            )


class _Checkpointed(TrainerCallback):
    def __init__(self, model: Any) -> None:
        self._model = model

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step:
            restore_expert_routers(self._model, checkpoint_folder(args, state))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            save_expert_routers(self._model, checkpoint_folder(args, state))
