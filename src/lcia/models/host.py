"""One base model in memory, any number of LoRA adapters on it."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lcia.data.sample import Message
from lcia.errors import ConfigError
from lcia.models.chat import ChatFormat
from lcia.models.gates import GATES, load_gates
from lcia.models.loading import BaseModel

logger = logging.getLogger(__name__)

TRAINED = "default"
"""Adapter name while training: peft then writes a plain, single-adapter directory."""

BASE = "__base__"
"""peft's name for "no adapter" in a batch of mixed adapters."""


class AdapterHost:
    """Holds a base model with its adapters; trains one, generates with any mix of them.

    Args:
        base: the loaded base model.
        max_prompt_tokens: longest prompt in tokens; longer ones lose their middle.
        max_loaded: adapters kept in memory besides the trained one; the least recently used
            leaves first.

    Attributes:
        base_answers: what the base model answered to a request, kept by those who ask it twice.
    """

    def __init__(
        self, base: BaseModel, *, max_prompt_tokens: int = 1024, max_loaded: int = 64
    ) -> None:
        self.base = base
        self.chat = ChatFormat(base.tokenizer, max_prompt_tokens=max_prompt_tokens)
        self.max_loaded = max_loaded
        self.base_answers: dict[Any, str] = {}
        self._peft: Any | None = None
        self._loaded: dict[str, Path] = {}

    def new_adapter(self, lora_config: Any) -> Any:
        """Put a fresh adapter on the model, ready to train, and return the ``PeftModel``."""
        from peft import get_peft_model

        self.clear()
        self._peft = get_peft_model(self.base.model, lora_config, adapter_name=TRAINED)
        return self._peft

    def adapter_to_train(self, path: Path) -> Any:
        """Load a stored adapter, ready to train on, and return the ``PeftModel``."""
        self.clear()
        self._load(TRAINED, path, trainable=True)
        return self._peft

    def clear(self) -> None:
        """Take all adapters off the model: while one is trained, Trainer saves all there are."""
        if self._peft is not None:
            self._peft.unload()
            self._peft = None
        self._loaded.clear()

    def combine(
        self,
        parts: Mapping[str, tuple[tuple[str, Path], float]],
        folder: Path,
        *,
        combination: str,
    ) -> Path:
        """Write the weighted combination of adapters as a plain peft directory.

        Args:
            parts: name to the key and directory of an adapter, and its weight.
            folder: where to write; made.
            combination: ``combination_type`` of peft's ``add_weighted_adapter``.

        Raises:
            ConfigError: peft cannot combine these adapters in this way.
        """
        for (key, path), _ in parts.values():
            if (path / GATES).is_file():
                raise ConfigError(f"{key} is a gated mixture of experts, which cannot be combined.")
        self.clear()
        self._ensure(dict(adapter for adapter, _ in parts.values()))
        assert self._peft is not None
        try:
            self._peft.add_weighted_adapter(
                adapters=[adapter[0] for adapter, _ in parts.values()],
                weights=[weight for _, weight in parts.values()],
                adapter_name=TRAINED,
                combination_type=combination,
            )
        except ValueError as error:
            raise ConfigError(f"combination {combination!r}: {error}") from error
        self._peft.save_pretrained(folder, selected_adapters=[TRAINED])
        (folder / "README.md").unlink(missing_ok=True)
        self.clear()
        return folder

    def generate(
        self,
        conversations: Sequence[Sequence[Message]],
        adapters: Sequence[tuple[str, Path] | None],
        *,
        max_new_tokens: int,
    ) -> list[str]:
        """Answer a batch of prompts greedily, each with its own adapter.

        Args:
            conversations: one prompt each.
            adapters: for each prompt the key and directory of its adapter, or None for the base
                model; a key with another directory than before is loaded again.
            max_new_tokens: longest answer in tokens.

        Returns:
            One answer each, without surrounding white space.
        """
        import torch

        self._ensure(dict(a for a in adapters if a is not None))
        batch = self._pad([self.chat.encode_prompt(turns)[0] for turns in conversations])
        names = [adapter[0] if adapter else BASE for adapter in adapters]
        extra = {} if self._peft is None else {"adapter_names": names}
        model = self.base.model if self._peft is None else self._peft
        model.eval()
        with torch.inference_mode():
            output = model.generate(
                **batch,
                **extra,
                do_sample=False,
                max_new_tokens=max_new_tokens,
                eos_token_id=self.chat.stop_ids,
                pad_token_id=self.base.tokenizer.pad_token_id,
            )
        answers = output[:, batch["input_ids"].shape[1] :]
        texts = self.base.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _ensure(self, wanted: dict[str, Path]) -> None:
        for key, path in wanted.items():
            if self._loaded.get(key, path) != path:
                self._unload(key)
            if key not in self._loaded:
                self._load(key, path, trainable=False)
            self._loaded.pop(key, None)
            self._loaded[key] = path
        surplus = max(0, len(self._loaded) - max(self.max_loaded, len(wanted)))
        for key in list(self._loaded)[:surplus]:
            self._unload(key)

    def _unload(self, key: str) -> None:
        assert self._peft is not None
        del self._loaded[key]
        if self._peft.active_adapter == key and self._loaded:
            # peft keeps a deleted adapter active, and then fails on its missing configuration.
            self._peft.set_adapter(next(iter(self._loaded)), inference_mode=True)
        if self._loaded:
            self._peft.delete_adapter(key)
        else:
            self.clear()

    def _load(self, key: str, path: Path, *, trainable: bool) -> None:
        from peft import PeftModel

        if self._peft is None:
            self._peft = PeftModel.from_pretrained(
                self.base.model, path, adapter_name=key, is_trainable=trainable
            )
        else:
            self._peft.load_adapter(path, adapter_name=key, is_trainable=trainable)
        load_gates(self._peft, path, adapter=key, trainable=trainable)

    def _pad(self, rows: list[list[int]]) -> dict[str, Any]:
        import torch

        width = max(map(len, rows))
        pad = self.base.tokenizer.pad_token_id
        ids = [[pad] * (width - len(row)) + row for row in rows]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        device = self.base.model.device
        return {
            "input_ids": torch.tensor(ids, device=device),
            "attention_mask": torch.tensor(mask, device=device),
        }
