"""What several sets of parameters give on the same samples: what is alike in them is run once."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from lcia.decision.choice import Measured
from lcia.models.batches import IGNORED
from lcia.models.host import AdapterHost

logger = logging.getLogger(__name__)

BATCH = 8
"""Samples measured at once: answers are short, and nothing is kept for gradients."""

ALIKE = 1e-3
"""Logits that differ by more are not the same."""

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Way:
    """One set of parameters to measure.

    Attributes:
        state: returns values by parameter name.
        plain: whether the adapter is off: the base model answers.
    """

    state: Callable[[], State]
    plain: bool = False


class LowerLayers:
    """The layers below the lowest one that is trained: the same for all that is measured.

    They are run for the first way of a batch; for the others their output stands in. Where layers
    cannot be told from the parameters' names, or from their outputs on the first batch, nothing is
    shared, and the numbers are the same.

    Args:
        model: with its trained parameters.

    Attributes:
        count: how many there are.
        total: all layers of the stack; 1 where they are not known, as if the model were one.
    """

    def __init__(self, model: Any) -> None:
        stacks, depths = set(), []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                stack, depth = _layer_of(model, name)
                stacks.add(stack)
                depths.append(depth)
        stack = next(iter(stacks)) if len(stacks) == 1 else None
        layers = list(model.get_submodule(stack)) if stack else []
        self.total = max(1, len(layers))
        self._layers = layers[: min(depths)] if layers else []
        self._checked = False

    @property
    def count(self) -> int:
        """How many layers are shared."""
        return len(self._layers)

    def passes(self, ways: int) -> int:
        """Return the layers that a sample runs through for so many ways."""
        return self.count + ways * (self.total - self.count) if ways else 0

    def run(self, calls: Sequence[Callable[[], Tensor]]) -> Iterator[Tensor]:
        """Yield what each call to the model returns for one batch; the first runs all layers."""
        first, *others = calls
        with self._kept() as outputs:
            yield (logits := first())
        if self._layers and not self._checked:
            with self._given(outputs[0]):
                again = first()
            self._checked = True
            if not torch.allclose(again, logits, rtol=ALIKE, atol=ALIKE):
                logger.warning("the lower layers cannot be shared, so each candidate runs them.")
                self._layers = []
        with self._given(outputs[0]) if self._layers else nullcontext():
            for call in others:
                yield call()

    @contextmanager
    def _kept(self) -> Iterator[list[Any]]:
        """Keep what the last of the lower layers returns."""
        outputs: list[Any] = []
        if not self._layers:
            yield outputs
            return
        hook = self._layers[-1].register_forward_hook(lambda *told: outputs.append(told[-1]))
        try:
            yield outputs
        finally:
            hook.remove()

    @contextmanager
    def _given(self, output: Any) -> Iterator[None]:
        """Make each of the lower layers return an output at once."""
        own = [vars(layer).get("forward") for layer in self._layers]
        for layer in self._layers:
            layer.forward = lambda *_, **__: output
        try:
            yield
        finally:
            for layer, forward in zip(self._layers, own, strict=True):
                if forward is None:
                    del layer.forward
                else:
                    layer.forward = forward


@torch.no_grad()
def measure(
    host: AdapterHost,
    model: Any,
    lower: LowerLayers,
    *,
    examples: Sequence[Any],
    ways: Sequence[Way],
) -> list[Measured]:
    """Return what each way gives on encoded examples.

    Batches are of similar length, so the same examples give the same numbers.

    Args:
        host: encodes and holds the base model.
        model: the adapter on it takes the values of each way, and keeps those of the last.
        lower: of the model.
        examples: encoded samples.
        ways: sets of parameters.
    """
    found = np.zeros((len(ways), 2, len(examples)))
    order = sorted(range(len(examples)), key=lambda i: (_length(examples[i]), i))
    parameters = dict(model.named_parameters())
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        batch = send_to_device(
            host.chat.collate([examples[i] for i in rows]), host.base.model.device
        )

        def logits(way: Way, batch: Mapping[str, Any] = batch) -> Tensor:
            put(parameters, way.state())
            with model.disable_adapter() if way.plain else nullcontext():
                return model(**batch).logits.float()

        shift = not host.chat.facts.encoder_decoder
        calls = [lambda way=way: logits(way) for way in ways]
        for number, out in enumerate(lower.run(calls)):
            found[number][:, rows] = _per_sample(out, batch["labels"], shift=shift)
    return [Measured(losses=losses, given=given) for losses, given in found]


@torch.no_grad()
def put(parameters: Mapping[str, Tensor], state: State) -> None:
    """Give parameters the values of a state, in place."""
    for name, values in state.items():
        parameters[name].copy_(values)


def _per_sample(logits: Tensor, labels: Tensor, *, shift: bool) -> Any:
    """Return mean loss and share given of each sample, shape (2, samples)."""
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    ).view(labels.shape)
    answer = labels != IGNORED
    count = answer.sum(dim=1).clamp(min=1)
    wrong = answer & (logits.argmax(dim=-1) != labels)
    given = (answer & (wrong.cumsum(dim=1) == 0)).sum(dim=1) / count
    return torch.stack([losses.sum(dim=1) / count, given]).double().cpu().numpy()


def _layer_of(model: Any, name: str) -> tuple[str | None, int]:
    """Return the outermost list of modules that a parameter stands in, and its place there."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            stack = ".".join(parts[:i])
            if isinstance(model.get_submodule(stack), nn.ModuleList):
                return stack, int(part)
    return None, 0


def _length(example: Any) -> int:
    return len(getattr(example, "prompt_ids", ())) + len(example.answer_ids)
