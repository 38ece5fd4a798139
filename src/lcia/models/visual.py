"""Vision-language models: images and text to batches, by the model's own processor.

The projector, which turns image features into word embeddings, belongs to a group like its adapter.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lcia.data.images import open_image
from lcia.data.sample import Message, Sample
from lcia.errors import ModelError
from lcia.models.answering import ModelFacts, TemplateSettings
from lcia.models.batches import answer_batch, mask_of, padded
from lcia.models.chat import ChatFormat

PROJECTOR = "projector.safetensors"
"""Beside a plain adapter's files, so that these still load in peft and vLLM."""

UNSAVED = Path()
"""Stands for values that no file has: those being trained."""

MODULES = ("multi_modal_projector", "connector", "merger", "deepstack_merger_list")
"""What transformers calls it: LLaVA and its kin, Idefics and SmolVLM, Qwen2-VL to Qwen3-VL."""


class Projector:
    """The projector of a model in memory: trained, saved, and swapped for another group's.

    Args:
        model: a vision-language model of transformers.

    Raises:
        ModelError: the model has no projector under a known name.
    """

    def __init__(self, model: Any) -> None:
        self._parts = {
            name: module
            for name, module in model.named_modules()
            if name.rpartition(".")[2] in MODULES
        }
        if not self._parts:
            raise ModelError(
                f"{type(model).__name__} has no projector that lcia knows ({', '.join(MODULES)}). "
                "Leave it as it is with projector: frozen."
            )
        self._embeddings = model.get_input_embeddings()
        self._own = {name: p.detach().clone() for name, p in self._named()}
        self._source: Path | None = None  # the file whose values these are; None: the model's own
        self._hook: Any = None

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters."""
        return [parameter for _, parameter in self._named()]

    def train(self) -> None:
        """Make the parameters trainable, in float32.

        Every forward pass touches them, so that a batch without images leaves gradients of zero
        and not none: on several processes, one that waits for a gradient would wait for ever.
        """
        for module in self._parts.values():
            module.float().requires_grad_(True)
        self._source = UNSAVED
        if self._hook is None:
            self._hook = self._embeddings.register_forward_hook(self._touch)

    def load(self, folder: Path | None) -> None:
        """Use the projector saved in ``folder``; the model's own if None or if it has none."""
        file = folder / PROJECTOR if folder is not None else None
        source = file if file is not None and file.is_file() else None
        if source != self._source:
            self._copy(load_file(source) if source is not None else self._own)
            self._source = UNSAVED if self._hook is not None else source

    def save(self, folder: Path) -> None:
        """Write ``projector.safetensors``."""
        tensors = {name: p.detach().cpu().contiguous() for name, p in self._named()}
        save_file(tensors, folder / PROJECTOR)

    def combine(self, parts: Mapping[Path, float], folder: Path) -> None:
        """Write the weighted sum of the projectors that adapters' folders hold."""
        total: dict[str, Tensor] = {}
        for part, weight in parts.items():
            self.load(part)
            for name, parameter in self._named():
                total[name] = total.get(name, 0) + weight * parameter.detach().float().cpu()
        save_file(total, folder / PROJECTOR)

    def reset(self) -> None:
        """Put the model's own projector back, not trainable, in the model's dtype."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        for name, parameter in self._named():
            parameter.requires_grad_(False)
            parameter.grad = None
            parameter.data = self._own[name].to(parameter.device, copy=True)
        self._source = None

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for prefix, module in self._parts.items():
            for name, parameter in module.named_parameters():
                yield f"{prefix}.{name}", parameter

    @torch.no_grad()
    def _copy(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self._named():
            parameter.copy_(tensors[name])

    def _touch(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        touched = sum((parameter.sum() for parameter in self.parameters()), torch.zeros(()))
        return output + (0.0 * touched).to(output.dtype)


@dataclass(frozen=True, kw_only=True)
class VisualExample:
    """A training example whose images are opened when a batch is made of it.

    Attributes:
        messages: the conversation up to the answer.
        answer_ids: token ids of the answer with the end of the turn; the loss is on these.
        truncated: whether tokens are cut out of the prompt's text.
    """

    messages: tuple[Message, ...]
    answer_ids: list[int]
    truncated: bool


class VisualFormat(ChatFormat):
    """Makes batches of prompts with images; samples with and without may stand side by side.

    The prompt's limit counts its text: an image's tokens come on top and are never cut.

    Args:
        processor: a transformers processor; its tokenizer pads on the left.
        max_prompt_tokens: longest prompt in tokens of text.
        keep_logits: whether the model's ``forward`` takes ``logits_to_keep``.
        pad_images: make images square with the processor's mean colour before it crops them.

    Attributes:
        open_image: returns the image that an ``Image.path`` stands for; default: the file.
    """

    def __init__(
        self,
        processor: Any,
        *,
        max_prompt_tokens: int,
        keep_logits: bool = False,
        pad_images: bool = False,
        facts: ModelFacts | None = None,
        template: TemplateSettings | None = None,
    ) -> None:
        self.processor = processor
        self.pad_images = pad_images
        self.open_image: Callable[[str], Any] = open_image
        super().__init__(
            processor.tokenizer,
            max_prompt_tokens=max_prompt_tokens,
            keep_logits=keep_logits,
            facts=facts,
            template=template,
        )

    def encode_prompt(
        self, messages: Sequence[Message], *, answer_tokens: int = 0
    ) -> tuple[list[int], bool]:
        """Return the token ids of a prompt's text, each image one token, and if it is cut."""
        ids = self._prompt_ids(self._render(messages))
        return ids, len(ids) > self._limit(answer_tokens)

    def _example(self, sample: Sample, whole: list[int], answer_ids: list[int]) -> VisualExample:
        return VisualExample(
            messages=sample.messages,
            answer_ids=answer_ids,
            truncated=len(whole) > self._limit(len(answer_ids)),
        )

    def collate(  # type: ignore[override]
        self, examples: Sequence[VisualExample]
    ) -> dict[str, Any]:
        """Return the training batch: that of ``answer_batch`` and what the processor adds."""
        answers = [example.answer_ids for example in examples]
        conversations = [example.messages for example in examples]
        rows, by_token, others = self._process(conversations, max(map(len, answers)))
        batch = answer_batch(rows, answers, pad_id=self.pad_id, keep_logits=self.keep_logits)
        for name, values in by_token.items():
            longer = [[*row, *[0] * len(a)] for row, a in zip(values, answers, strict=True)]
            batch[name] = padded(longer, value=0)
        return {**others, **batch}

    def prompts(
        self, conversations: Sequence[Sequence[Message]], *, answer_tokens: int = 0
    ) -> dict[str, Tensor]:
        """Return the batch that ``generate`` of the model takes, padded on the left."""
        rows, by_token, others = self._process(conversations, answer_tokens)
        return {
            "input_ids": padded(rows, value=self.pad_id),
            "attention_mask": mask_of(rows),
            **{name: padded(values, value=0) for name, values in by_token.items()},
            **others,
        }

    def _process(
        self, conversations: Sequence[Sequence[Message]], answer_tokens: int = 0
    ) -> tuple[list[list[int]], dict[str, list[list[int]]], dict[str, Tensor]]:
        """Return rows of token ids, what else there is by token, and all that is by image."""
        texts = [self._render(messages) for messages in conversations]
        images = [list(self._open(messages)) for messages in conversations]
        output = self.processor(
            text=texts,
            images=images if any(images) else None,
            padding=True,
            return_tensors="pt",
            add_special_tokens=self._adds_special_tokens(texts[0]),
        )
        ids, mask = output.pop("input_ids"), output.pop("attention_mask").bool()
        kept = [self._kept(row, real, answer_tokens) for row, real in zip(ids, mask, strict=True)]
        like_ids = [name for name, value in output.items() if value.shape == ids.shape]
        by_token = {name: output.pop(name) for name in like_ids}

        def rows_of(values: Tensor) -> list[list[int]]:
            return [row[keep].tolist() for row, keep in zip(values, kept, strict=True)]

        return rows_of(ids), {name: rows_of(v) for name, v in by_token.items()}, dict(output)

    def _kept(self, ids: Tensor, real: Tensor, answer_tokens: int) -> Tensor:
        """Return which tokens of a padded row stay: text beyond the limit leaves the middle."""
        limit = self.max_prompt_tokens
        if after := len(self.encoder.after):  # no end of a text stands before an answer
            places = real.nonzero().flatten()
            if ids[places[-after:]].tolist() == self.encoder.after:
                real = real.clone()
                real[places[-after:]] = False
        fixed = torch.tensor([*self.tokenizer.all_special_ids, self.processor.image_token_id])
        text = (real & ~torch.isin(ids, fixed)).nonzero().flatten()
        room = self.facts.prompt_tokens(answer_tokens)
        if room is not None:
            limit = max(0, min(limit, room - (int(real.sum()) - len(text))))
        surplus = len(text) - limit
        if surplus <= 0:
            return real
        start = limit // 2
        kept = real.clone()
        kept[text[start : start + surplus]] = False
        return kept

    def _open(self, messages: Sequence[Message]) -> Iterable[Any]:
        for image in (image for message in messages for image in message.images):
            opened = self.open_image(image.path)
            yield self._squared(opened) if self.pad_images else opened

    def _squared(self, image: Any) -> Any:
        from PIL import Image, ImageOps

        mean = getattr(self.processor.image_processor, "image_mean", (0.5, 0.5, 0.5))
        colour = tuple(int(255 * channel) for channel in mean)
        side = max(image.size)
        return ImageOps.pad(image, (side, side), Image.Resampling.BICUBIC, color=colour)

    @property
    def _template_holder(self) -> Any:
        return self.processor

    def _content(self, message: Message) -> list[dict[str, str]]:
        """Return a turn as the list of texts and images that chat templates take."""
        parts: list[dict[str, str]] = []
        start = 0
        for image in message.images:
            if image.at > start:
                parts.append(
                    {"type": "text", "text": self._plain(message.content[start : image.at])}
                )
            parts.append({"type": "image"})
            start = image.at
        return [*parts, {"type": "text", "text": self._plain(message.content[start:])}]

    def _text(self, message: Message) -> str:
        return "".join(
            part["text"] if part["type"] == "text" else f"{self.processor.image_token}\n"
            for part in self._content(message)
        )

    def _behind(self, sample: Sample, prompt: str) -> tuple[str, bool]:
        answer = self.encoder.protect(sample.answers[0])
        return (answer, False) if answer != sample.answers[0] else super()._behind(sample, prompt)

    def _plain(self, text: str) -> str:
        """Break up an image's token that stands in a text, and every other control token.

        No image belongs to it, and the processor tokenises on its own.
        """
        token = self.processor.image_token
        return self.encoder.broken(text.replace(token, f"{token[0]} {token[1:]}"))

    def _adds_special_tokens(self, text: str) -> bool:
        bos = self.tokenizer.bos_token
        return not (bos and text.startswith(bos))
