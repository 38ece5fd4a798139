"""The last step of an epoch, where samples are no multiple of batch and processes.

accelerate repeats samples there, which then count twice in the gradient and in a method's
precision. Here the batches are filled up with a blank example that has no label: the loss is a
sum over answer tokens, so it weighs nothing, and every process still takes part in every step.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch.utils.data import BatchSampler, DataLoader, Dataset

from lcia.models.batches import IGNORED


class Blank(NamedTuple):
    """An example that fills up a batch and has no label."""

    example: Any


class Examples(Dataset[Any]):
    """Encoded examples; the index behind the last one is the blank.

    Args:
        examples: what the chat format encoded; the one with the shortest answer is the blank.
    """

    def __init__(self, examples: Sequence[Any]) -> None:
        self.examples = examples
        each = (examples[i] for i in range(len(examples)))
        self.blank = Blank(min(each, key=lambda example: len(example.answer_ids)))

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> Any:
        return self.blank if i == len(self.examples) else self.examples[i]


class Collate:
    """Makes batches as another function does, without labels in the rows of blanks."""

    def __init__(self, collate: Callable[[Sequence[Any]], dict[str, Any]]) -> None:
        self._collate = collate

    def __call__(self, examples: Sequence[Any]) -> dict[str, Any]:
        """Return the batch of examples, blanks among them."""
        real = [e.example if isinstance(e, Blank) else e for e in examples]
        batch = self._collate(real)
        for row, example in enumerate(examples):
            if isinstance(example, Blank):
                batch["labels"][row] = IGNORED
        return batch


class FilledBatches(BatchSampler):
    """Batches of indices, all full and as many on every process.

    Args:
        batches: one process's batches; the last may be short.
        blank: the index that fills up.
        processes: the number of batches becomes a multiple of it.
    """

    def __init__(self, batches: Any, *, blank: int, processes: int) -> None:
        self.sampler = batches.sampler
        self.batch_size, self.drop_last = batches.batch_size, batches.drop_last
        self._batches, self._blank, self._processes = batches, blank, processes

    def __len__(self) -> int:
        return -(-len(self._batches) // self._processes) * self._processes

    def __iter__(self) -> Iterator[list[int]]:
        empty = [self._blank] * self.batch_size
        for batch in self._batches:
            yield [*batch, *empty][: self.batch_size]
        yield from [empty] * (len(self) - len(self._batches))


def fill_batches(loader: DataLoader[Any], *, processes: int) -> None:
    """Make every process's last batches full with blanks, in a loader accelerate prepared.

    Args:
        loader: of ``Examples``.
        processes: that share it; more than one.
    """
    examples = loader.dataset
    assert isinstance(examples, Examples)
    shard: Any = loader.batch_sampler
    if not shard.drop_last:
        shard.batch_sampler = FilledBatches(
            shard.batch_sampler, blank=len(examples), processes=processes
        )
