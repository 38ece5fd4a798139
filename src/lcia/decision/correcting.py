"""Learning corrections: the group answers as corrected when it is done, and keeps the rest.

Training on corrections differs from training on a task in four ways. They are not outvoted: they
are repeated until they are a quarter of an epoch, and what the group remembers until it is half;
remembered samples of the same conversations are let go. Training ends when all corrections are
taught, not after so many epochs. What the method makes of the trained parameters, an average or a
merge, is moved back towards those as far as the corrections need. And all of them are remembered.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from transformers import TrainerCallback

from lcia.data.sample import Sample, Task
from lcia.files import read_json, write_json
from lcia.integrations.transformers import checkpoint_folder
from lcia.methods.base import TaskContext
from lcia.models.batches import IGNORED
from lcia.models.host import AdapterHost
from lcia.store.journal import Journal
from lcia.store.samples import Kept

logger = logging.getLogger(__name__)

EVERY, LOOKS = 5, 3
"""Steps between two looks at whether everything is taught, and looks in a row that find it so."""

KEEPS = 0.5
"""Share of the trained parameters' margin that is kept: of the logit of each token of a correction
over that of any other. Above 0, greedy decoding gives the correction word for word."""

BATCH = 16
"""Corrections looked at at once."""

STATE = "taught.json"
"""How many looks in a row found everything taught, in a checkpoint."""

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Points between what the method ends with (0) and the trained parameters (1)."""


def not_corrected(kept: Kept, task: Task) -> Kept:
    """Return remembered samples without those whose conversation the task answers anew."""
    if not task.corrects:
        return kept
    corrected = {sample.messages for sample in task.train}
    return [(sample, name) for sample, name in kept if sample.messages not in corrected]


def balanced(samples: Sequence[Sample], task: Task) -> Sequence[Sample]:
    """Repeat corrections until they are a quarter, and what is remembered until it is half."""
    own = set(map(id, task.train))
    others = [sample for sample in samples if id(sample) not in own]
    if not others:
        return task.train
    corrections = list(task.train) * max(1, round(len(others) / len(task.train) / 3))
    return [*corrections, *others * max(1, round(len(task.train) / len(others)))]


class UntilTaught(TrainerCallback):
    """Ends training when every correction is taught, and sees to it that they stay.

    A killed training that is resumed comes by the same step again: what is counted travels with
    the checkpoints, and the step that training ends with is none.

    Args:
        host: encodes the corrections.
        context: the task being learned.
    """

    def __init__(self, host: AdapterHost, context: TaskContext) -> None:
        self._host = host
        self._context = context
        self._examples = host.chat.encode_examples(context.task.train)
        self._trained: dict[str, Tensor] = {}
        self._step = self._looks = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the parameters: a training that is resumed may be at its last step already."""
        self._keep(state.global_step)
        saved = checkpoint_folder(args, state) / STATE
        self._looks = int(read_json(saved)) if saved.is_file() else 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the parameters; end training if they answer as corrected."""
        is_last = state.global_step >= state.max_steps
        if not is_last and state.global_step % EVERY:
            return
        self._keep(state.global_step)
        if is_last:
            return
        self._looks = self._looks + 1 if (self._margins(kwargs["model"]) > 0).all() else 0
        if self._looks == LOOKS:
            control.should_training_stop = True
            control.should_save = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write what is counted into the checkpoint just saved."""
        if state.is_world_process_zero:
            write_json(checkpoint_folder(args, state) / STATE, self._looks)

    @torch.no_grad()
    def settle(self, model: Any, journal: Journal) -> None:
        """Move the parameters towards the trained ones until they answer as corrected.

        They are what the method ended with. The first of ``SHARES`` is taken at which every
        correction that the trained parameters give keeps ``KEEPS`` of its margin.
        """
        ended = {n: p.detach().clone() for n, p in self._context.parameters.items()}
        self._put(ended, share=1.0)
        reached = self._margins(model)
        margins, share = reached, 1.0
        for share in SHARES:
            self._put(ended, share=share)
            margins = self._margins(model)
            if ((margins >= KEEPS * reached) | (reached <= 0)).all():
                break
        held, corrections = int((margins > 0).sum()), len(self._examples)
        journal.write("taught", step=self._step, held=held, corrections=corrections, share=share)
        if held < corrections:
            logger.warning(
                "task '%s': %d of %d corrections are not answered as corrected after %d steps. "
                "Some may contradict each other; or teach it for more epochs.",
                self._context.task.name,
                corrections - held,
                corrections,
                self._step,
            )

    def _keep(self, step: int) -> None:
        self._step = step
        self._trained = {n: p.detach().clone() for n, p in self._context.parameters.items()}

    def _put(self, ended: Mapping[str, Tensor], *, share: float) -> None:
        for name, parameter in self._context.parameters.items():
            parameter.copy_(torch.lerp(ended[name], self._trained[name], share))

    @torch.no_grad()
    def _margins(self, model: Any) -> Tensor:
        """Return the least margin of a token of each correction, shape (corrections,)."""
        was_training = model.training
        model.eval()
        found = torch.zeros(len(self._examples))
        chat = self._host.chat
        for start in range(0, len(self._examples), BATCH):
            rows = slice(start, start + BATCH)
            batch = send_to_device(chat.collate(self._examples[rows]), self._host.base.model.device)
            logits, labels = model(**batch).logits.float(), batch["labels"]
            if not chat.facts.encoder_decoder:
                logits, labels = logits[:, :-1], labels[:, 1:]
            wanted = labels.clamp(min=0).unsqueeze(-1)
            own = logits.gather(-1, wanted).squeeze(-1)
            others = logits.scatter(-1, wanted, -torch.inf).amax(dim=-1)
            margins = torch.where(labels == IGNORED, torch.inf, own - others)
            found[rows] = margins.amin(dim=1).cpu()
        model.train(was_training)
        return found
