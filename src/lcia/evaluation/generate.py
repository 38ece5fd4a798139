"""Answers of the assistant to held-out samples, routed one by one, generated in batches."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from lcia.data.sample import Message
from lcia.data.task import Task
from lcia.errors import StoreError
from lcia.evaluation.scorers import mean_percent, score_each
from lcia.files import read_jsonl
from lcia.grouping.conversation import Prompt, told
from lcia.grouping.router import RouteDecision
from lcia.models.host import AdapterHost
from lcia.registry import SCORERS

Route = Callable[[Prompt], RouteDecision]
Adapters = Mapping[str, tuple[str, Path]]


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


def generate(
    host: AdapterHost,
    requests: Sequence[Request],
    *,
    batch_size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Answer prompts greedily in batches of similar length; a batch may mix adapters.

    The base model never changes: what it answered before is not generated again.

    Args:
        host: the base model with its adapters.
        requests: in any order.
        batch_size: prompts answered at once.
        progress: told after each batch how many are done, and of how many.

    Returns:
        One answer per request, in the order of the requests.
    """

    def alike(i: int) -> tuple[int, str, int]:
        request = requests[i]
        key = request.adapter[0] if request.adapter else ""
        return request.max_new_tokens, key, sum(len(m.content) for m in request.messages)

    known = [host.base_answers.get(request) for request in requests]
    answers = [answer or "" for answer in known]
    order = [i for i, answer in enumerate(known) if answer is None]
    done = 0
    for limit, same in groupby(sorted(order, key=alike), key=lambda i: alike(i)[0]):
        for batch in batched(same, batch_size):
            texts = host.generate(
                [requests[i].messages for i in batch],
                [requests[i].adapter for i in batch],
                max_new_tokens=limit,
            )
            for i, text in zip(batch, texts, strict=True):
                answers[i] = text
                if requests[i].adapter is None:
                    host.base_answers.keep(requests[i], text)
            done += len(batch)
            progress(done, len(order))
    return answers


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
    known: Iterable[Prediction] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Prediction]:
    """Route every held-out sample of the tasks, answer it and score the answer.

    Args:
        host: the base model.
        tasks: their ``test`` samples are answered.
        route: what a prompt says, as ``lcia.grouping.told`` tells it, to decision.
        adapters: group to the key ``group@version`` and directory of its adapter; None where the
            base model answers.
        batch_size: prompts answered at once.
        known: earlier predictions; an answer of the same weights to the same sample is taken
            from them instead of being generated again.
        progress: told after each batch how many are done, and of how many.

    Returns:
        One prediction per sample, in the order of tasks and samples.
    """
    cache = {(p.task, p.sample, p.adapter, p.prompt): p.prediction for p in known}
    samples = [
        (task, sample, route(told(sample.messages))) for task in tasks for sample in task.test
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
    texts = generate(host, [r for _, r in missing], batch_size=batch_size, progress=progress)
    cache.update(zip([key for key, _ in missing], texts, strict=True))
    answers = iter([cache[key] for key in keys])
    scores = []
    for task in tasks:
        own = list(islice(answers, len(task.test)))
        scores += score_each(SCORERS.get(task.scorer), own, [s.answers for s in task.test])
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
        )
        for (task, sample, decision), key, score in zip(samples, keys, scores, strict=True)
    ]


def scores_percent(predictions: Iterable[Prediction]) -> dict[str, float]:
    """Return the mean score of each task in percent."""
    by_task: dict[str, list[float]] = {}
    for prediction in predictions:
        by_task.setdefault(prediction.task, []).append(prediction.score)
    return {task: mean_percent(scores) for task, scores in by_task.items()}


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
