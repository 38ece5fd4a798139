"""Answers of the assistant to held-out samples, routed one by one, generated in batches."""

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from lcia.data.sample import Image, Message, Task
from lcia.distributed.channel import Channel
from lcia.distributed.processes import Piece, Work, from_main, share, together
from lcia.errors import StoreError
from lcia.evaluation.kept import Keep, KeptAnswers, digest
from lcia.evaluation.scorers import mean_percent, score_each
from lcia.files import read_jsonl
from lcia.grouping.instruction import Prompt, told
from lcia.grouping.router import RouteDecision
from lcia.models.host import AdapterHost
from lcia.registry import SCORERS

Route = Callable[[Prompt], RouteDecision]
Adapters = Mapping[str, tuple[str, Path]]
Progress = Callable[[int, int], None]

CHARACTERS_A_TOKEN = 4
"""About as many, to guess how long a batch takes."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One held-out sample with the assistant's answer; a line of ``predictions.jsonl``.

    Attributes:
        task: the task the sample belongs to.
        sample: its id.
        prompt: text of its last user turn.
        answers: every acceptable answer.
        prediction: what the assistant answered.
        score: in [0, 1], by the task's scorer.
        group: the group that answered; None for the base model.
        adapter: ``group@version`` of the weights that answered; None for the base model.
        similarity: of the nearest group.
        reason: why this group, as in ``RouteDecision``.
    """

    task: str
    sample: str
    prompt: str
    answers: tuple[str, ...]
    prediction: str
    score: float
    group: str | None
    adapter: str | None
    similarity: float
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return the prediction as JSON values."""
        return {**asdict(self), "answers": list(self.answers)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Prediction":
        """Return the prediction that ``to_json`` described."""
        return cls(**{**value, "answers": tuple(value["answers"])})


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt to answer.

    Attributes:
        messages: the conversation; the last turn is the user's.
        adapter: key and directory of the adapter; None for the base model.
        max_new_tokens: longest answer in tokens.
    """

    messages: tuple[Message, ...]
    adapter: tuple[str, Path] | None
    max_new_tokens: int

    @property
    def adapter_key(self) -> str | None:
        """Key of the adapter; None for the base model."""
        return self.adapter[0] if self.adapter else None

    @property
    def size(self) -> int:
        """Characters of the conversation."""
        return sum(len(message.content) for message in self.messages)

    def to_json(self) -> list[Any]:
        """Return all that the answer depends on but weights, as JSON."""
        turns = [[m.role, m.content, [_image(i) for i in m.images]] for m in self.messages]
        return [turns, self.adapter_key, self.max_new_tokens]


def _image(image: Image) -> list[Any]:
    return [image.sha256 or image.path, image.at]


def generate(
    host: AdapterHost,
    requests: Sequence[Request],
    *,
    batch_size: int,
    progress: Progress = lambda done, total: None,
    channel: Channel | None = None,
    keep: Keep | None = None,
) -> list[str]:
    """Answer prompts greedily in batches of similar length; a batch may mix adapters.

    The base model never changes: what it answered before is not generated again. Several
    processes answer the batches that one would make, each on its own model.

    Args:
        host: the base model with its adapters.
        requests: in any order.
        batch_size: prompts answered at once.
        progress: told after each batch of this process how many are done, and of how many.
        channel: to processes that call this with the same requests.
        keep: where answers are kept as they come; what is there is not generated again.

    Returns:
        One answer per request, in the order of the requests; on other processes than the main
        one, nothing.
    """
    asked = [r.to_json() for r in requests] if channel or keep else []
    of = digest([asked, batch_size])
    answers: dict[int, str] = {}
    work, order = None, []
    if channel is None or channel.rank == 0:
        kept = KeptAnswers(keep.path, digest([of, keep.given])) if keep else None
        known = [host.base_answers.get(request) for request in requests]
        order = [i for i, answer in enumerate(known) if answer is None]

        def add(batch: list[int], texts: list[str]) -> None:
            new = dict(zip(batch, texts, strict=True))
            answers.update(new)
            if kept:
                kept.add(new)

        answers |= {i: answer for i, answer in enumerate(known) if answer is not None}
        answers |= kept.answers if kept else {}
        pieces = list(_pieces(requests, order, batch_size=batch_size, done=set(answers)))
        work = Work(pieces, add)

    def answer(batch: list[int]) -> list[str]:
        return host.generate(
            [requests[i].messages for i in batch],
            [requests[i].adapter for i in batch],
            max_new_tokens=requests[batch[0]].max_new_tokens,
        )

    def tell() -> None:
        progress(len(answers) - len(requests) + len(order), len(order))

    share(answer, work, channel=channel, of=of, after_each=tell if work else lambda: None)
    for i, text in answers.items():
        if requests[i].adapter is None:
            host.base_answers.keep(requests[i], text)
    return [answers[i] for i in range(len(requests))] if work else []


def _pieces(
    requests: Sequence[Request], order: Sequence[int], *, batch_size: int, done: Container[int]
) -> Iterator[Piece]:
    """Yield batches, without what is done: it must not change what the others are padded to.

    Args:
        requests: all of them.
        order: which are to be answered.
        batch_size: prompts answered at once.
        done: which of these are answered.
    """

    def alike(i: int) -> tuple[int, str, int]:
        return requests[i].max_new_tokens, requests[i].adapter_key or "", requests[i].size

    for limit, same in groupby(sorted(order, key=alike), key=lambda i: alike(i)[0]):
        for whole in batched(same, batch_size):
            if batch := [i for i in whole if i not in done]:
                keys = {key for i in batch if (key := requests[i].adapter_key)}
                tokens = limit + max(requests[i].size for i in batch) / CHARACTERS_A_TOKEN
                yield Piece(job=batch, needs=frozenset(keys), cost=len(batch) * tokens)


def batched(items: Iterable[int], size: int) -> Iterator[list[int]]:
    """Yield the items in lists of at most ``size`` (``itertools.batched`` of Python 3.12)."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def evaluate(
    host: AdapterHost,
    tasks: Sequence[Task],
    *,
    route: Route,
    adapters: Adapters | Mapping[str, None],
    batch_size: int,
    given: Callable[[str], RouteDecision] | None = None,
    known: Iterable[Prediction] = (),
    progress: Progress = lambda done, total: None,
    keep: Keep | None = None,
) -> list[Prediction]:
    """Route every held-out sample of the tasks, answer it and score the answer.

    All processes that a launcher started share the answering, so each of them calls this; the
    main one scores.

    Args:
        host: the base model.
        tasks: their ``test`` samples are answered.
        route: what a prompt says, as ``lcia.grouping.told`` tells it, to decision.
        adapters: group to the key ``group@version`` and directory of its adapter; None where the
            base model answers.
        batch_size: prompts answered at once.
        given: name of a task to decision, for all its samples, past ``route``.
        known: earlier predictions; an answer of the same weights to the same sample is taken
            from them instead of being generated again.
        progress: told after each batch of this process how many are done, and of how many.
        keep: where answers are kept as they come, to go on from after a stop.

    Returns:
        One prediction per sample, in the order of tasks and samples, on every process.
    """
    cache = {(p.task, p.sample, p.adapter, p.prompt): p.prediction for p in known}
    samples = [
        (task, sample, given(task.name) if given else route(told(sample.messages)))
        for task in tasks
        for sample in task.test
    ]
    keys, missing = [], []
    for task, sample, decision in samples:
        adapter = adapters[decision.group] if decision.group else None
        key = (task.name, sample.id, adapter[0] if adapter else None, sample.prompt)
        keys.append(key)
        if key not in cache:
            request = Request(
                messages=sample.messages, adapter=adapter, max_new_tokens=task.max_new_tokens
            )
            missing.append((key, request))
    texts = generate(
        host,
        [request for _, request in missing],
        batch_size=batch_size,
        progress=progress,
        channel=together(),
        keep=keep,
    )

    def score() -> list[dict[str, Any]]:
        cache.update(zip([key for key, _ in missing], texts, strict=True))
        scores = _scores(tasks, [cache[key] for key in keys])
        return [
            Prediction(
                task=task.name,
                sample=sample.id,
                prompt=sample.prompt,
                answers=sample.answers,
                prediction=cache[key],
                score=score,
                group=decision.group,
                adapter=key[2],
                similarity=decision.similarity,
                reason=decision.reason,
            ).to_json()
            for (task, sample, decision), key, score in zip(samples, keys, scores, strict=True)
        ]

    return [Prediction.from_json(prediction) for prediction in from_main(score)]


def _scores(tasks: Sequence[Task], answers: Iterable[str]) -> list[float]:
    """Return the score of each answer, by the scorer of its task."""
    given, scores = iter(answers), []
    for task in tasks:
        own = list(islice(given, len(task.test)))
        scores += score_each(SCORERS.get(task.scorer), own, [s.answers for s in task.test])
    return scores


def scores_percent(predictions: Iterable[Prediction]) -> dict[str, float]:
    """Return the mean score of each task in percent."""
    by_task: dict[str, list[float]] = {}
    for prediction in predictions:
        by_task.setdefault(prediction.task, []).append(prediction.score)
    return {task: mean_percent(scores) for task, scores in by_task.items()}


def counts_of(predictions: Iterable[Prediction]) -> dict[str, int]:
    """Return how many samples of each task were answered."""
    return dict(Counter(prediction.task for prediction in predictions))


def read_predictions(path: Path) -> list[Prediction]:
    """Return the predictions in a ``predictions.jsonl``.

    Raises:
        StoreError: the file is missing or damaged.
    """
    try:
        return [Prediction.from_json(record) for record in read_jsonl(path)]
    except (KeyError, TypeError) as error:
        raise StoreError(f"{path}: expected predictions, found a record without: {error}.") from (
            error
        )
