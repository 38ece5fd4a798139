"""Answers to held-out samples: kept as they come, and made again only where a change reaches."""

import hashlib
import json
import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcia.data.sample import Sample, Task
from lcia.errors import ConfigError, DataError, ModelError
from lcia.evaluation.scorers import normalise, score_each
from lcia.files import LINES_LIMIT, append, json_bytes, read_bytes, write_bytes
from lcia.models.answering import LEAST_PROMPT
from lcia.models.chat import ChatFormat
from lcia.registry import SCORERS


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Where answers are kept while they come.

    Attributes:
        path: the file; whoever has all of them removes it.
        given: what answers depend on besides the requests, such as weights not yet committed.
    """

    path: Path
    given: str = ""


class KeptAnswers:
    """A JSON Lines file of answers; each line ends with its checksum.

    The first line says what was asked. A file of other requests is begun anew; a line that was
    cut off or damaged, and what follows it, is dropped: it is answered again.

    Args:
        path: the file, made if there is none.
        of: digest of what is asked.

    Attributes:
        answers: number of a request to its answer.
    """

    def __init__(self, path: Path, of: str) -> None:
        self.path = path
        self.answers: dict[int, str] = {}
        head = _line({"of": of})
        content = read_bytes(path, limit=LINES_LIMIT) if path.exists() else b""
        good = head
        if content.startswith(head):
            for line in content[len(head) :].splitlines(keepends=True):
                record = _record(line)
                if record is None:
                    break
                self.answers |= {int(i): text for i, text in record["answers"].items()}
                good += line
        if good != content:
            write_bytes(path, good)

    def add(self, answers: Mapping[int, str]) -> None:
        """Keep answers.

        Raises:
            WriteError: the disk is full, read-only or not ours.
        """
        self.answers |= answers
        append(self.path, _line({"answers": {str(i): text for i, text in answers.items()}}))


def digest(asked: Sequence[Any]) -> str:
    """Return the digest of JSON values, the same on every machine."""
    return hashlib.sha256(json_bytes(asked)).hexdigest()


def _line(record: Mapping[str, Any]) -> bytes:
    body = json.dumps(record).encode()
    return b"%s %08x\n" % (body, zlib.crc32(body))


def _record(line: bytes) -> Any:
    """Return what a line holds; None if it is not as it was written."""
    body, _, rest = line.rpartition(b" ")
    return json.loads(body) if rest == b"%08x\n" % zlib.crc32(body) else None


logger = logging.getLogger(__name__)


def check_answers(chat: ChatFormat, task: Task) -> None:
    """Check that a model can read a task's prompts and give its answers.

    Answers that are longer than what is generated, or that the model's tokens cannot express, are
    counted and told.

    Raises:
        ConfigError: the model has no room for ``max_new_tokens``.
        DataError: no held-out sample could score, or an answer is longer than the model reads.
        ModelError: the chat template refuses the turns of a sample.
    """
    samples = (*task.train, *task.test)
    try:
        chat.facts.prompt_tokens(task.max_new_tokens + chat.answering.ending.lead_tokens)
    except ConfigError as error:
        raise ConfigError(f"task '{task.name}': {error}") from error
    shapes = {tuple(turn.role for turn in s.messages): s for s in reversed(samples)}
    for sample in shapes.values():
        try:
            chat.encode_prompt(sample.messages)
        except ModelError as error:
            raise ModelError(f"task '{task.name}', sample '{sample.id}': {error}") from error
    _check_lengths(chat, task)
    # Most samples reach their first answer, so those are tokenised at once.
    firsts = chat.encoder.encode_all([chat.encoder.protect(s.answers[0]) for s in samples])
    pairs = zip(samples, firsts, strict=True)
    given = [_Given(chat, sample, task.max_new_tokens, first) for sample, first in pairs]
    _tell_unreachable(task, given)
    tested = given[len(task.train) :]
    if any(one.reached for one in tested):
        return
    options = [sample.answers for sample in task.test]
    if not any(score_each(SCORERS.get(task.scorer), [one.nearest for one in tested], options)):
        first = tested[0]
        raise DataError(
            f"task '{task.name}': no held-out sample could score: of sample '{first.sample.id}', "
            f"the answer {_short(first.sample.answers[0])} comes back as {_short(first.nearest)}. "
            + (_LONGER if first.too_long else "Change the answers, or take another model.")
        )


_LONGER = "Raise max_new_tokens (lcia learn --max-new-tokens)."


class _Given:
    """The best that could be generated for a sample, the tokens of whose first answer are known."""

    def __init__(self, chat: ChatFormat, sample: Sample, limit: int, first: list[int]) -> None:
        self.sample = sample
        self.tokens = 0
        self.reached = self.too_long = False
        self.nearest = ""
        for i, answer in enumerate(sample.answers):
            ids = chat.encoder.encode(chat.encoder.protect(answer)) if i else first
            text = chat.answering.answer(ids[:limit])
            reached = normalise(text) == normalise(answer)
            if reached or not self.tokens:
                self.tokens, self.nearest = max(1, len(ids)), text
                self.reached, self.too_long = reached, len(ids) > limit
            if reached:
                break


def _tell_unreachable(task: Task, given: Sequence[_Given]) -> None:
    missed = [one for one in given if not one.reached]
    if long := [one for one in missed if one.too_long]:
        logger.warning(
            "task '%s': %d of %d answers are longer than the %d tokens that are generated; the "
            "first is sample '%s' with %d. %s",
            task.name,
            len(long),
            len(given),
            task.max_new_tokens,
            long[0].sample.id,
            long[0].tokens,
            _LONGER,
        )
    if lost := [one for one in missed if not one.too_long]:
        logger.warning(
            "task '%s': %d of %d answers cannot be written in the model's tokens; the first is "
            "sample '%s', where %s comes back as %s.",
            task.name,
            len(lost),
            len(given),
            lost[0].sample.id,
            _short(lost[0].sample.answers[0]),
            _short(lost[0].nearest),
        )


def _check_lengths(chat: ChatFormat, task: Task) -> None:
    """Check that the answers that are trained on fit into the model.

    Raises:
        DataError: one does not.
    """
    if chat.facts.positions is None:
        return
    most = chat.facts.positions - (0 if chat.facts.encoder_decoder else LEAST_PROMPT)
    most -= chat.answering.ending.lead_tokens + 1
    for sample in task.train:
        if len(sample.answers[0].encode()) <= most // 4:  # no tokenizer takes four for a byte
            continue
        tokens = len(chat.encoder.encode(chat.encoder.protect(sample.answers[0])))
        if tokens > most:
            raise DataError(
                f"task '{task.name}', sample '{sample.id}': its answer has {tokens} tokens; the "
                f"model reads {chat.facts.positions}. Shorten it, or leave the sample out."
            )


def _short(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
