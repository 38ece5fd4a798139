"""One base model in memory, any number of LoRA adapters on it."""

import inspect
import logging
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lcia.data.sample import Message
from lcia.errors import ConfigError
from lcia.models.answering import TemplateSettings
from lcia.models.batches import behind_prefix, read_prefix, shares_prefixes
from lcia.models.chat import ChatFormat, Seq2SeqFormat
from lcia.models.loading import BaseModel
from lcia.models.lora import (
    EXPERT_ROUTERS,
    add_lora,
    load_adapter,
    load_expert_routers,
    read_config,
)
from lcia.models.visual import Projector, VisualFormat

logger = logging.getLogger(__name__)

TRAINED = "default"
"""Adapter name while training: peft then writes a plain, single-adapter directory."""

BASE = "__base__"
"""peft's name for "no adapter" in a batch of mixed adapters."""

BASE_ANSWERS = 8192
"""Answers of the base model kept; a process that learns one task after another asks for ever."""


class RecentAnswers:
    """The answers used last, by request.

    Args:
        most: how many are kept; the one not used for longest leaves first.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._answers: OrderedDict[Any, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, request: Any) -> str | None:
        """Return the answer to a request, None where it is not known."""
        if request not in self._answers:
            return None
        self._answers.move_to_end(request)
        return self._answers[request]

    def keep(self, request: Any, answer: str) -> None:
        """Remember an answer."""
        self._answers[request] = answer
        self._answers.move_to_end(request)
        if len(self._answers) > self._most:
            self._answers.popitem(last=False)


class AdapterHost:
    """Holds a base model with its adapters; trains one, generates with any mix of them.

    Args:
        base: the loaded base model.
        max_prompt_tokens: longest prompt in tokens; longer ones lose their middle.
        max_loaded: adapters kept in memory besides the trained one; the least recently used
            leaves first.
        projector: whether the projector of a vision-language model is trained and saved with
            every adapter.
        pad_images: whether images are made square before the processor crops them.
        template: what the chat template is rendered with.

    Attributes:
        chat: makes batches of prompts and answers.
        projector: what is trained and swapped besides adapters; None where nothing is.
        base_answers: what the base model answered to a request, kept by those who ask it twice;
            the last ``BASE_ANSWERS`` used.
        proven: settings that took a training step with this model.
        answerable: fingerprints of tasks whose answers it can give.
    """

    def __init__(
        self,
        base: BaseModel,
        *,
        max_prompt_tokens: int = 1024,
        max_loaded: int = 64,
        projector: bool = True,
        pad_images: bool = False,
        template: TemplateSettings | None = None,
    ) -> None:
        self.base = base
        self.chat = chat_format(
            base, pad_images=pad_images, max_prompt_tokens=max_prompt_tokens, template=template
        )
        self.projector = Projector(base.model) if base.processor and projector else None
        self.max_loaded = max_loaded
        self.base_answers = RecentAnswers(BASE_ANSWERS)
        self.proven: set[str] = set()
        self.answerable: set[str] = set()
        self._peft: Any | None = None
        self._loaded: dict[str, Path] = {}

    def new_adapter(self, lora_config: Any) -> Any:
        """Put a fresh adapter on the model, ready to train, and return the ``PeftModel``.

        Raises:
            ConfigError: it is more than plain LoRA, or names no linear layer of the model.
        """
        self.clear()
        if self.base.processor is not None:
            adapt_language_only(lora_config, self.base.model)
        self._peft = add_lora(self.base.model, lora_config, name=TRAINED)
        if self.projector is not None:
            self.projector.train()
        return self._peft

    def adapter_to_train(self, path: Path) -> Any:
        """Load a stored adapter, ready to train on, and return the ``PeftModel``."""
        self.clear()
        self._load(TRAINED, path, trainable=True)
        if self.projector is not None:
            self.projector.train()
            self.projector.load(path)
        return self._peft

    @property
    def is_sharded(self) -> bool:
        """Whether training left each process a part of the base model (FSDP2, ZeRO-3)."""
        from torch.distributed.tensor import DTensor

        parameters = self.base.model.parameters()
        return any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in parameters)

    def clear(self) -> None:
        """Take all adapters off the model: while one is trained, Trainer saves all there are."""
        if self._peft is not None:
            self._peft.unload()
            self._peft = None
        if self.projector is not None:
            self.projector.reset()
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
            if (path / EXPERT_ROUTERS).is_file():
                raise ConfigError(f"{key} is a mixture of experts, which cannot be combined.")
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
        if self.projector is not None:
            self.projector.combine({path: weight for (_, path), weight in parts.values()}, folder)
        self.clear()
        return folder

    def generate(
        self,
        conversations: Sequence[Sequence[Message]],
        adapters: Sequence[tuple[str, Path] | None],
        *,
        max_new_tokens: int,
    ) -> list[str]:
        """Answer a batch of prompts greedily, each with its own adapter and projector.

        Adapters are mixed in one batch; prompts that need another projector make another.

        Args:
            conversations: one prompt each.
            adapters: for each prompt the key and directory of its adapter, or None for the base
                model; a key with another directory than before is loaded again.
            max_new_tokens: longest answer in tokens.

        Returns:
            One answer each, without surrounding white space.
        """
        self._ensure(dict(a for a in adapters if a is not None))
        answers = [""] * len(conversations)
        for folder, rows in self._by_projector(adapters).items():
            if self.projector is not None:
                self.projector.load(folder)
            texts = self._answer(
                [conversations[i] for i in rows],
                [adapters[i] for i in rows],
                max_new_tokens=max_new_tokens,
            )
            for i, text in zip(rows, texts, strict=True):
                answers[i] = text
        return answers

    def _by_projector(
        self, adapters: Sequence[tuple[str, Path] | None]
    ) -> dict[Path | None, list[int]]:
        """Return folder of a projector to the rows that need it; one entry if none is trained."""
        rows: dict[Path | None, list[int]] = {}
        for i, adapter in enumerate(adapters):
            folder = adapter[1] if adapter is not None and self.projector is not None else None
            rows.setdefault(folder, []).append(i)
        return rows

    def _answer(
        self,
        conversations: Sequence[Sequence[Message]],
        adapters: Sequence[tuple[str, Path] | None],
        *,
        max_new_tokens: int,
    ) -> list[str]:
        import torch

        device, dtype = self.base.model.device, self.base.model.dtype
        max_new_tokens += self.chat.answering.ending.lead_tokens
        prompts = self.chat.prompts(conversations, answer_tokens=max_new_tokens)
        batch = {
            name: value.to(device, dtype if value.is_floating_point() else None)
            for name, value in prompts.items()
        }
        names = [adapter[0] if adapter else BASE for adapter in adapters]
        extra: dict[str, Any] = {} if self._peft is None else {"adapter_names": names}
        model = self.base.model if self._peft is None else self._peft
        model.eval()
        with torch.inference_mode():
            if shares_prefixes(self.base.model):
                batch, length = behind_prefix(batch, pad_id=self.chat.pad_id)
                if length:
                    options = {"logits_to_keep": 1} if self.chat.keep_logits else {}
                    prefix = batch["input_ids"][0, :length]
                    extra |= read_prefix(model, prefix, names, **options)
            output = model.generate(
                **batch,
                **extra,
                do_sample=False,
                max_new_tokens=max_new_tokens,
                eos_token_id=self.chat.stop_ids,
                pad_token_id=self.chat.pad_id,
                stopping_criteria=self.chat.answering.stopping(self.chat.answer_start(batch)),
            )
        return self.chat.answers(output, batch)

    def read(
        self, examples: Sequence[Any], adapter: tuple[str, Path] | None
    ) -> list[tuple[Any, Any]]:
        """Return how an adapter reads answers, each as log-probabilities and ids of its tokens.

        Args:
            examples: encoded, as ``ChatFormat.collate`` takes them; one batch.
            adapter: key and directory; None for the base model.

        Returns:
            For each example float32 arrays of shape (tokens, vocabulary), and ids (tokens,).
        """
        import torch
        from accelerate.utils import send_to_device

        from lcia.models.batches import IGNORED

        self._ensure(dict([adapter]) if adapter else {})
        if self.projector is not None:
            self.projector.load(adapter[1] if adapter else None)
        names = [adapter[0] if adapter else BASE] * len(examples)
        extra: dict[str, Any] = {} if self._peft is None else {"adapter_names": names}
        model = self.base.model if self._peft is None else self._peft
        model.eval()
        batch = send_to_device(self.chat.collate(examples), self.base.model.device)
        with torch.inference_mode():
            logits, labels = model(**batch, **extra).logits, batch["labels"]
        if not self.chat.facts.encoder_decoder:
            logits, labels = logits[:, :-1], labels[:, 1:]
        found = []
        for row, ids in zip(logits, labels, strict=True):
            answer = ids != IGNORED
            log_probs = row[answer].float().log_softmax(-1)
            found.append((log_probs.cpu().numpy(), ids[answer].cpu().numpy()))
        return found

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
        read_config(path)
        if self._peft is None:
            self._peft = load_adapter(
                self.base.model, path, adapter_name=key, is_trainable=trainable
            )
        else:
            self._peft.load_adapter(path, adapter_name=key, is_trainable=trainable)
        load_expert_routers(self._peft, path, adapter=key, trainable=trainable)


def chat_format(base: BaseModel, *, pad_images: bool = False, **options: Any) -> ChatFormat:
    """Return what makes batches for this kind of model; ``options`` are those of ``ChatFormat``."""
    options["keep_logits"] = "logits_to_keep" in inspect.signature(base.model.forward).parameters
    options["facts"] = base.facts
    if base.processor is not None:
        return VisualFormat(base.processor, pad_images=pad_images, **options)
    kind = Seq2SeqFormat if base.facts.encoder_decoder else ChatFormat
    return kind(base.tokenizer, **options)


def adapt_language_only(lora_config: Any, model: Any) -> None:
    """Keep an adapter off the tower and the projector, unless the configuration says otherwise.

    A tower's layers have the names of the language model's.
    """
    import torch

    language = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is language)
    if lora_config.exclude_modules is None:
        lora_config.exclude_modules = rf"(?!{re.escape(prefix)}\.).*"
    if lora_config.target_modules == "all-linear":
        linear = (n for n, m in language.named_modules() if isinstance(m, torch.nn.Linear))
        lora_config.target_modules = {name.rpartition(".")[2] for name in linear}
