"""How an answer is asked for, how it is sampled and how it ends: for chat, eval, learn and serve.

What is trained behind an answer is what stops one. Held-out answers are greedy; of a model's own
``generation_config`` its end tokens count, and what an encoder-decoder has to begin and end with.
Penalties, beams, temperatures and lengths are left out, by every verb alike.
"""

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lcia.errors import ConfigError, ModelError
from lcia.models.control import TextEncoder

TODAY = datetime.date(2024, 7, 26)
"""The day templates are told it is: an answer must not depend on when it was learned or asked.

Llama 3.1's own template falls back on it.
"""

NAMED: Mapping[str, str] = {
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{{ message['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
}
"""Chat templates for models that have none of their own."""

_DIRECTIVES = "aAwdbBmyYHIpMSfjUWcxXGuV"

LEAST_PROMPT = 16
"""Tokens of a prompt that must fit beside an answer."""

_ENCODER_DECODER = ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")
_KEPT = {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", *_ENCODER_DECODER}


@dataclass(frozen=True, kw_only=True)
class TemplateSettings:
    """What a chat template is rendered with besides the messages.

    Attributes:
        kwargs: passed to every rendering, such as ``enable_thinking: false``.
        date: what the template takes for today.
        fold_system: whether the system turn becomes the beginning of the first user turn, for
            templates that have no system turn.
        named: a key of ``NAMED``, for a model without a chat template; None: none.
    """

    kwargs: Mapping[str, Any] = field(default_factory=dict)
    date: datetime.date = TODAY
    fold_system: bool = False
    named: str | None = None

    def chosen(self, written: Any) -> Any:
        """Return the chat template in force: the model's own, or the one that is named.

        Raises:
            ConfigError: it has another of its own.
        """
        if self.named is None:
            return written
        if written and written != NAMED[self.named]:
            raise ConfigError(
                f"generation.chat_template is '{self.named}', and the model has a chat template of "
                "its own. Leave it out: the model was tuned with its own."
            )
        return NAMED[self.named]

    def dated(self, template: str) -> str:
        """Return a template that takes ``date`` for today, whenever it is rendered.

        A macro hides transformers' ``strftime_now``: as an argument of a rendering, a function is
        replaced. The line break behind it leaves the template at the beginning of a line.
        """
        if "strftime_now" not in template:
            return template
        directives = [f"%{flag}{letter}" for flag in ("-", "") for letter in _DIRECTIVES]
        told = "format"
        for directive in directives:
            told += f" | replace({directive!r}, {self.date.strftime(directive)!r})"
        macro = "{% macro strftime_now(format) %}{{ " + told + " }}{% endmacro %}"
        return f"{macro}\n{template}"


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What a model's configuration says about prompts and answers.

    Attributes:
        vocabulary: rows of the embedding; None: unknown.
        positions: how many tokens the model reads, prompt and answer together (an encoder-decoder:
            each); None: no limit.
        end_ids: tokens that its ``generation_config`` ends an answer with.
        chosen_ends: whether someone wrote them there; else they are defaults of the architecture,
            which may mean nothing to the tokenizer.
        encoder_decoder: whether prompt and answer are read apart.
        ignored: settings of ``generation_config`` that lcia does not follow, with their values.
    """

    vocabulary: int | None = None
    positions: int | None = None
    end_ids: tuple[int, ...] = ()
    chosen_ends: bool = False
    encoder_decoder: bool = False
    ignored: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Any, generation_config: Any = None) -> "ModelFacts":
        """Read a model's ``config`` and ``generation_config``."""
        text = config.get_text_config()
        written = generation_config is not None and not generation_config._from_model_config
        ends = getattr(generation_config if written else text, "eos_token_id", None)
        listed = [ends] if isinstance(ends, int) else list(ends or ())
        ignored = {}
        if generation_config is not None:
            ignored = {k: v for k, v in _differing(generation_config).items() if k not in _KEPT}
        return cls(
            vocabulary=getattr(text, "vocab_size", None),
            positions=getattr(text, "max_position_embeddings", None),
            end_ids=tuple(listed),
            chosen_ends=written,
            encoder_decoder=bool(config.is_encoder_decoder),
            ignored=ignored,
        )

    def prompt_tokens(self, answer_tokens: int) -> int | None:
        """Return the longest prompt that leaves room for an answer; None: no limit.

        Raises:
            ConfigError: there is none.
        """
        if self.positions is None:
            return None
        beside = LEAST_PROMPT * (not self.encoder_decoder)
        if answer_tokens + beside > self.positions:
            raise ConfigError(
                f"An answer of {answer_tokens} tokens was asked for, and the model has "
                f"{self.positions} positions for it{' and its prompt' if beside else ''}. Set "
                f"max_new_tokens to at most {self.positions - beside}."
            )
        return self.positions - (0 if self.encoder_decoder else answer_tokens)


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How an answer ends.

    Attributes:
        stop_ids: tokens that each end an answer, in order.
        stop_strings: texts that end one, where a template ends turns with ordinary text.
        text: what is trained behind an answer, as text.
        ids: what is trained behind it as tokens, where no text stands for them.
        lead: what the template writes between a prompt and its answer, as it is decoded: trained,
            generated, and then left out.
        lead_tokens: how many tokens that is.
    """

    stop_ids: tuple[int, ...]
    stop_strings: tuple[str, ...] = ()
    text: str = ""
    ids: tuple[int, ...] = ()
    lead: str = ""
    lead_tokens: int = 0


class Answering:
    """Turns generated tokens into answers, and says when to stop; needs no model.

    Args:
        encoder: of the tokenizer.
        ending: how an answer ends.
        pad_id: of positions that are masked.

    Attributes:
        stop_ids: see ``Ending``.
        stop_strings: see ``Ending``.
    """

    def __init__(self, encoder: TextEncoder, ending: Ending, *, pad_id: int) -> None:
        self.encoder = encoder
        self.ending = ending
        self.pad_id = pad_id
        self.stop_ids = frozenset(ending.stop_ids)
        self.stop_strings = ending.stop_strings
        self._hidden = frozenset(encoder.control.values()) | self.stop_ids
        self._texts: dict[int, str] = {}

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of generated tokens without control tokens; nothing is cut."""
        shown = [number for number in ids if number not in self._hidden]
        if len(shown) != 1:
            return self._decode(shown) if shown else ""
        # Single ones are asked for with every token of a stream; there are as many as tokens.
        (number,) = shown
        if (text := self._texts.get(number)) is None:
            text = self._texts[number] = self._decode(shown)
        return text

    def _decode(self, ids: list[int]) -> str:
        return str(self.encoder.tokenizer.decode(ids, skip_special_tokens=False))

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether generated tokens hold the end of an answer."""
        if not self.stop_ids.isdisjoint(ids):
            return True
        if not self.stop_strings:
            return False
        text = self.text(ids)
        return any(stop in text for stop in self.stop_strings)

    def answer(self, ids: Sequence[int]) -> str:
        """Return the answer in generated tokens: up to its end, without surrounding space.

        An end that the limit of tokens cut in two is left out, too.
        """
        end = next((i for i, number in enumerate(ids) if number in self.stop_ids), len(ids))
        text = self.text(ids[:end])
        for stop in self.stop_strings:
            text = text.partition(stop)[0]
            if end == len(ids):
                text = text[: len(text) - _begun(text, stop)]
        return self.without_lead(text).strip()

    def without_lead(self, text: str) -> str:
        """Return a text without what the template writes before every answer."""
        lead, stripped = self.ending.lead.strip(), text.lstrip()
        return stripped[len(lead) :] if lead and stripped.startswith(lead) else text

    def stopping(self, prompt_tokens: int) -> list[Callable[..., Tensor]]:
        """Return what ``generate`` of a model takes as ``stopping_criteria``.

        Args:
            prompt_tokens: how many positions come before the answers.
        """
        if not self.stop_strings:
            return []

        def ended(input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
            rows = input_ids[:, prompt_tokens:].tolist()
            return torch.tensor([self.ended(row) for row in rows], device=input_ids.device)

        return [ended]


def find_ending(
    encoder: TextEncoder, facts: ModelFacts, *, tail: str, following: str, lead: str
) -> Ending:
    """Return how an answer ends.

    Args:
        encoder: of the tokenizer.
        facts: of the model.
        tail: what the template writes after the last answer; empty without a template.
        following: what it writes between an answer and the next turn's content.
        lead: what it writes between a prompt and its answer.

    Raises:
        ModelError: nothing says where an answer ends.
    """
    tokenizer = encoder.tokenizer
    stops, strings, text = set(), [], tail.strip()
    if first := encoder.first_control(text):
        stops.add(encoder.control[first.group()])
        if before := text[: first.start()].strip():
            strings.append(before)
        text = text[: first.end()]
    elif text:
        strings.append(text)
    turn = encoder.first_control(following)
    if turn and not (lead.strip() or following[: turn.start()].strip()):
        stops.add(encoder.control[turn.group()])
    stops |= {i for i in facts.end_ids if facts.chosen_ends or not _is_ordinary(encoder, i)}
    if tokenizer.eos_token_id is not None:
        stops.add(tokenizer.eos_token_id)
    ids: tuple[int, ...] = ()
    rows = facts.vocabulary
    stops = {i for i in stops if rows is None or i < rows}
    if not text:
        text = (tokenizer.eos_token or "") if tokenizer.eos_token_id in stops else ""
        ids = () if text else tuple(i for i in facts.end_ids if i in stops)[:1]
    if not (text or ids):
        raise ModelError(
            "model: nothing says where an answer ends: the tokenizer has no end token that the "
            "model knows, the chat template ends no turn, and generation_config.json has no "
            'eos_token_id. Set "eos_token" in its tokenizer_config.json.'
        )
    answering = Answering(encoder, Ending(stop_ids=tuple(sorted(stops))), pad_id=0)
    lead_ids = encoder.encode(lead) if lead.strip() else []
    return Ending(
        stop_ids=tuple(sorted(stops)),
        stop_strings=tuple(strings),
        text=text,
        ids=ids,
        lead=answering.text(lead_ids) if lead_ids else "",
        lead_tokens=len(lead_ids),
    )


def find_pad_id(tokenizer: Any, facts: ModelFacts) -> int:
    """Return a token that the model knows, for positions that are masked."""
    known = [tokenizer.pad_token_id, tokenizer.eos_token_id, 0]
    rows = facts.vocabulary
    return next(i for i in known if i is not None and (rows is None or i < rows))


def settle_generation(model: Any) -> None:
    """Make ``generate`` of a model greedy, whatever its ``generation_config`` asks for.

    transformers takes everything a call leaves open from there.
    """
    from transformers import GenerationConfig

    written = model.generation_config
    kept = {"bos_token_id", "eos_token_id", "pad_token_id"}
    if model.config.is_encoder_decoder:
        kept |= set(_ENCODER_DECODER)
    values = {name: getattr(written, name, None) for name in kept}
    model.generation_config = GenerationConfig(**values)


def _differing(generation_config: Any) -> dict[str, Any]:
    """Return what a ``generation_config`` sets that changes answers, or would."""
    found: dict[str, Any] = generation_config.to_diff_dict()
    return {k: v for k, v in found.items() if not k.startswith("_") and v is not None}


def _is_ordinary(encoder: TextEncoder, number: int) -> bool:
    """Whether text yields a token: then a default of the architecture does not mean it."""
    if number in encoder.control.values():
        return False
    text = encoder.tokenizer.decode([number])
    return encoder.encode(encoder.protect(text)) == [number]


def _begun(text: str, stop: str) -> int:
    """Return how many characters at the end of a text begin a stop string, if more than one."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 1, -1) if text.endswith(stop[:n])), 0)
