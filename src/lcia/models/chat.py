"""From messages to token ids, by the model's own chat template where it has one."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError
from torch import Tensor

from lcia.data.sample import Message, Sample
from lcia.errors import ConfigError, ModelError
from lcia.models.answering import (
    Answering,
    ModelFacts,
    TemplateSettings,
    find_ending,
    find_pad_id,
)
from lcia.models.batches import IGNORED, answer_batch, mask_of, padded
from lcia.models.control import TextEncoder

_ASKED = Message(role="user", content="q-u-e-s")
_ANSWERED = Message(role="assistant", content="a-n-s")
_AGAIN = Message(role="user", content="m-o-r-e")
_THOUGHT = re.compile(r"<(think|thinking|thought|reasoning)>\s*\Z")


@dataclass(frozen=True, kw_only=True)
class Example:
    """A tokenised training example.

    Attributes:
        prompt_ids: token ids up to where the answer starts.
        answer_ids: token ids of the answer with the end of the turn; the loss is on these.
        truncated: whether tokens were cut out of the prompt.
    """

    prompt_ids: list[int]
    answer_ids: list[int]
    truncated: bool


class ChatFormat:
    """Makes batches of prompts and answers the way a language model was instruction-tuned.

    A prompt longer than allowed loses tokens from its middle: instructions stand at a prompt's
    beginning or end, and the answer cue at its end. Control tokens in what a message says are
    read as the characters they are.

    Args:
        tokenizer: a transformers tokenizer; without a chat template, turns are joined by blank
            lines and the answer starts on a new line.
        max_prompt_tokens: longest prompt in tokens.
        keep_logits: whether the model's ``forward`` takes ``logits_to_keep``.
        facts: of the model; by default nothing is known of it.
        template: what the chat template is rendered with.

    Attributes:
        answering: how answers end.
        encoder: from text to token ids.
        pad_id: of positions that are masked.

    Raises:
        ModelError: nothing says where an answer ends, or the chat template writes tokens that the
            model does not have.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_prompt_tokens: int,
        keep_logits: bool = False,
        facts: ModelFacts | None = None,
        template: TemplateSettings | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_prompt_tokens = max_prompt_tokens
        self.keep_logits = keep_logits
        self.facts = facts or ModelFacts()
        self.template = template or TemplateSettings()
        self.pad_id = find_pad_id(tokenizer, self.facts)
        written = self.template.chosen(self._template_holder.chat_template)
        self._templated = bool(written)
        self._written = self.template.dated(written) if isinstance(written, str) else None
        self.encoder = TextEncoder(tokenizer)
        between = self._between() if self._templated else ""
        cue = self._cue() if self._templated else ""
        known = {str(token) for token in tokenizer.added_tokens_decoder.values()}
        known = {token for token in known if token.strip()}
        cue = cue.lstrip()
        turns = {token for token in known if token in between or cue.startswith(token)}
        self.encoder = TextEncoder(tokenizer, vocabulary=self.facts.vocabulary, turns=turns)
        lead, self._tail = self._around_answer() if self._templated else ("", "")
        ending = find_ending(
            self.encoder, self.facts, tail=self._tail, following=between, lead=lead
        )
        self.answering = Answering(self.encoder, ending, pad_id=self.pad_id)
        self._check_template()

    @property
    def stop_ids(self) -> list[int]:
        """Token ids that each end an answer."""
        return list(self.answering.ending.stop_ids)

    def encode_prompt(
        self, messages: Sequence[Message], *, answer_tokens: int = 0
    ) -> tuple[list[int], bool]:
        """Return the token ids of a prompt up to where the answer starts, and if it was cut.

        Args:
            messages: the conversation.
            answer_tokens: what has to fit into the model beside it.

        Raises:
            ConfigError: the model has no room for such an answer, or reads no images.
            ModelError: the chat template refuses the messages.
        """
        return self._cut(self._prompt_ids(self._render(messages)), answer_tokens)

    def encode_example(self, sample: Sample) -> Any:
        """Return a sample's prompt and first answer as token ids, as ``collate`` takes them."""
        return self.encode_examples([sample])[0]

    def encode_examples(self, samples: Sequence[Sample]) -> list[Any]:
        """Return what ``encode_example`` does for each, tokenised on all cores."""
        prompts = [self._render(sample.messages) for sample in samples]
        wholes = [self._framed(ids) for ids in self.encoder.encode_all(prompts)]
        answers = self._answer_ids(samples, prompts, wholes)
        return list(map(self._example, samples, wholes, answers))

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Return the training batch of encoded examples, as ``answer_batch`` describes it."""
        return answer_batch(
            [example.prompt_ids for example in examples],
            [example.answer_ids for example in examples],
            pad_id=self.pad_id,
            keep_logits=self.keep_logits,
        )

    def prompts(
        self, conversations: Sequence[Sequence[Message]], *, answer_tokens: int = 0
    ) -> dict[str, Tensor]:
        """Return the batch that ``generate`` of the model takes, padded on the left."""
        rows = [self.encode_prompt(c, answer_tokens=answer_tokens)[0] for c in conversations]
        return {"input_ids": padded(rows, value=self.pad_id), "attention_mask": mask_of(rows)}

    def answer_start(self, prompts: Mapping[str, Tensor]) -> int:
        """Return at which position of ``generate``'s output the answers begin."""
        return int(prompts["input_ids"].shape[1])

    def answers(self, output: Tensor, prompts: Mapping[str, Tensor]) -> list[str]:
        """Return the texts generated after a batch of prompts, without surrounding space."""
        rows = output[:, self.answer_start(prompts) :].tolist()
        return [self.answering.answer(row) for row in rows]

    def _example(self, sample: Sample, whole: list[int], answer_ids: list[int]) -> Any:
        prompt_ids, truncated = self._cut(whole, len(answer_ids))
        return Example(prompt_ids=prompt_ids, answer_ids=answer_ids, truncated=truncated)

    def _cut(self, ids: list[int], answer_tokens: int) -> tuple[list[int], bool]:
        limit = self._limit(answer_tokens)
        if len(ids) <= limit:
            return ids, False
        head = limit // 2
        return ids[:head] + ids[head - limit :], True

    def _limit(self, answer_tokens: int) -> int:
        room = self.facts.prompt_tokens(answer_tokens)
        return self.max_prompt_tokens if room is None else min(room, self.max_prompt_tokens)

    def _prompt_ids(self, text: str) -> list[int]:
        return self._framed(self.encoder.encode(text))

    def _framed(self, ids: list[int]) -> list[int]:
        """Return the ids of a prompt with those that the tokenizer puts before or behind it."""
        return ids if self._templated else [*self.encoder.before, *ids]

    def _answer_ids(
        self, samples: Sequence[Sample], prompts: Sequence[str], wholes: Sequence[list[int]]
    ) -> list[list[int]]:
        """Return what is trained behind each prompt: what the template writes there, to its end.

        Prompt and answer are tokenised together; where the prompt's tokens change by that, the
        answer is alone.
        """
        ending = self.answering.ending
        behind = [self._behind(*pair) for pair in zip(samples, prompts, strict=True)]
        answers = [text + ending.text for text, _ in behind]
        texts = [
            prompt + answer if together else answer
            for prompt, answer, (_, together) in zip(prompts, answers, behind, strict=True)
        ]
        found = self.encoder.encode_all(texts)
        rows = zip(found, wholes, answers, behind, strict=True)
        for i, (ids, whole, answer, (_, together)) in enumerate(rows):
            if together and ids[: len(whole)] == whole and len(ids) > len(whole):
                found[i] = ids[len(whole) :]
            elif together:
                found[i] = self.encoder.encode(answer)
        return [[*ids, *ending.ids] for ids in found]

    def _behind(self, sample: Sample, prompt: str) -> tuple[str, bool]:
        """Return the text behind a prompt, and whether it is tokenised together with it.

        Where a template renders an answered conversation with another beginning than its prompt,
        the answer follows the prompt as it will when it is asked for: behind a thought that the
        prompt opens, unless the answer brings one.
        """
        answer = Message(role="assistant", content=sample.answers[0])
        text = self.encoder.protect(answer.content)
        if not self._templated:
            return text, False
        whole, lead = self._templated_text([*sample.messages, answer]), self.answering.ending.lead
        if whole.startswith(prompt) and whole.endswith(self._tail):
            return whole[len(prompt) : len(whole) - len(self._tail)], True
        return text if lead.strip() in text else lead + text, True

    @property
    def _template_holder(self) -> Any:
        """What has the chat template: the tokenizer, or a processor around it."""
        return self.tokenizer

    def _content(self, message: Message) -> Any:
        """Return a turn's content as the chat template takes it."""
        return self._text(message)

    def _text(self, message: Message) -> str:
        """Return a turn as text where there is no chat template."""
        if message.images:
            raise ConfigError(
                f"model: it reads text only, and '{message.images[0].path}' is an image. Choose "
                "a vision-language model."
            )
        return self.encoder.protect(message.content)

    def _render(self, messages: Sequence[Message]) -> str:
        if not self._templated:
            return "\n\n".join(map(self._text, messages)) + "\n"
        return self._templated_text(messages, add_generation_prompt=True)

    def _templated_text(self, messages: Sequence[Message], **options: Any) -> str:
        messages = folded(messages) if self.template.fold_system else messages
        turns = [{"role": turn.role, "content": self._content(turn)} for turn in messages]
        options |= self.template.kwargs
        if self._written:
            options["chat_template"] = self._written
        try:
            text = self._template_holder.apply_chat_template(turns, tokenize=False, **options)
        except TemplateError as error:
            roles = ", ".join(turn.role for turn in messages)
            remedy = "Change the data, or the template in the model's folder."
            if messages[0].role == "system":
                remedy = (
                    "If it knows no system turn, set generation.fold_system=true: the system text "
                    "then begins the first user turn."
                )
            raise ModelError(
                f"model: its chat template refuses the turns {roles}: {error}. {remedy}"
            ) from error
        return str(text)

    def _around_answer(self) -> tuple[str, str]:
        """Return what stands between a prompt and its answer, and behind the last answer.

        A thought that the prompt opens and answered turns do not have is closed empty.
        """
        prompt = self._templated_text([_ASKED], add_generation_prompt=True)
        whole = self._templated_text([_ASKED, _ANSWERED])
        before, _, tail = whole.rpartition(_ANSWERED.content)
        if before.startswith(prompt):
            return before[len(prompt) :], tail
        opened = _THOUGHT.search(prompt)
        return f"\n</{opened[1]}>\n\n" if opened else "", tail

    def _between(self) -> str:
        """Return what the template writes between an answer and the next turn's content."""
        try:
            whole = self._templated_text([_ASKED, _ANSWERED, _AGAIN])
        except ModelError:
            return ""
        return whole.rpartition(_ANSWERED.content)[2].partition(_AGAIN.content)[0]

    def _cue(self) -> str:
        """Return what the template writes behind a question so that an answer follows."""
        asked = self._templated_text([_ASKED])
        return self._templated_text([_ASKED], add_generation_prompt=True).removeprefix(asked)

    def _check_template(self) -> None:
        """Check that the model has every token of a prompt.

        Raises:
            ModelError: it does not.
        """
        rows = self.facts.vocabulary
        ids = self._prompt_ids(self._render([_ASKED]))
        beyond = [number for number in ids if rows is not None and number >= rows]
        if beyond:
            token = self.tokenizer.convert_ids_to_tokens(beyond[0])
            raise ModelError(
                f"model: a prompt holds the token '{token}' with the id {beyond[0]}, and the "
                f"model's embedding has {rows} rows. The tokenizer is another model's, or the "
                "model was saved before resize_token_embeddings."
            )


def folded(messages: Sequence[Message]) -> list[Message]:
    """Return a conversation whose system turn is the beginning of its first user turn."""
    if not messages or messages[0].role != "system":
        return list(messages)
    system, *rest = messages
    if not rest or rest[0].role != "user":
        return [replace(system, role="user"), *rest]
    before = f"{system.content}\n\n"
    images = tuple(replace(image, at=image.at + len(before)) for image in rest[0].images)
    first = replace(rest[0], content=before + rest[0].content, images=(*system.images, *images))
    return [first, *rest[1:]]


class Seq2SeqFormat(ChatFormat):
    """Makes batches for an encoder-decoder model, such as T5: prompts in, answers as labels."""

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Return ``input_ids``, ``attention_mask`` and ``labels``, padded on the right."""
        answers = [example.answer_ids for example in examples]
        return {
            **self._batch([example.prompt_ids for example in examples]),
            "labels": padded(answers, value=IGNORED, left=False),
        }

    def prompts(
        self, conversations: Sequence[Sequence[Message]], *, answer_tokens: int = 0
    ) -> dict[str, Tensor]:
        """Return the batch that ``generate`` of the model takes, padded on the right."""
        rows = [self.encode_prompt(c, answer_tokens=answer_tokens)[0] for c in conversations]
        return self._batch(rows)

    def answer_start(self, prompts: Mapping[str, Tensor]) -> int:
        """Return 0: prompts are no part of ``generate``'s output."""
        return 0

    def _framed(self, ids: list[int]) -> list[int]:
        # The encoder was trained on texts with their end token.
        return [*super()._framed(ids), *self.encoder.after]

    def _batch(self, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        return {
            "input_ids": padded(rows, value=self.pad_id, left=False),
            "attention_mask": mask_of(rows, left=False),
        }
