"""Which adapter answers a request, and what the client is told about it."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lcia.errors import StoreError
from lcia.grouping import Prompt, RouteDecision, Said
from lcia.serving.http.api_error import ApiError
from lcia.serving.live import ASSISTANT, BASE, LiveStore, Snapshot

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The adapter that answers.

    Attributes:
        version: of the assistant.
        group: that answers; None for the base model.
        adapter: key and folder of its adapter; None for the base model.
        decision: the router's; None where the client named the group.
        turns_back: how many user turns before the last the decision rests on.
    """

    version: int
    group: str | None
    adapter: tuple[str, Path] | None
    decision: RouteDecision | None
    turns_back: int = 0

    @property
    def reason(self) -> str:
        """Why this group: as in ``RouteDecision``, or ``requested``."""
        return self.decision.reason if self.decision else "requested"

    def to_json(self) -> dict[str, Any]:
        """Return the ``lcia`` field of a response."""
        decision = self.decision
        return {
            "group": self.group,
            "reason": self.reason,
            "similarity": decision.similarity if decision else None,
            "runner_up": decision.runner_up if decision else None,
            "runner_up_similarity": decision.runner_up_similarity if decision else None,
            "turns_back": self.turns_back,
            "adapter": self.adapter[0] if self.adapter else None,
            "version": self.version,
        }

    def headers(self) -> dict[str, str]:
        """Return the same as response headers; what is None is left out."""
        fields = {**self.to_json(), "group": self.group or BASE}
        return {
            f"x-lcia-{name.replace('_', '-')}": quote(
                f"{value:.4f}" if isinstance(value, float) else str(value), safe="@"
            )
            for name, value in fields.items()
            if value is not None
        }


def choose_adapter(snapshot: Snapshot, model: str, said: Said) -> Choice:
    """Return what answers a request for ``model``.

    Args:
        snapshot: the version in service.
        model: ``assistant``, ``base``, a group, or a group of a version, ``g1@0002``.
        said: what the conversation says; ``assistant`` needs a turn of the user.

    Raises:
        ApiError: 404, there is no such model.
    """
    if model == ASSISTANT:
        considered = snapshot.router.consider(prompt_of(said))
        decision, turns_back = considered.decision, considered.back
        group = decision.group
    elif model == BASE or model in snapshot.names or model in snapshot.pinned:
        decision, turns_back = None, 0
        group = snapshot.names.get(model) or snapshot.pinned.get(model)
    else:
        raise ApiError(
            404,
            f"The model {model[:100]!r} does not exist. There are: {ASSISTANT}, {BASE}"
            f"{''.join(f', {name}' for name in list(snapshot.names)[:20])}.",
            code="model_not_found",
            param="model",
        )
    return Choice(
        version=snapshot.number,
        group=group,
        adapter=snapshot.adapters[group] if group else None,
        decision=decision,
        turns_back=turns_back,
    )


def choose_named(live: LiveStore, model: str, said: Said) -> Choice:
    """Return what answers a request for ``model``, which may name a version: ``assistant@7``.

    Raises:
        ApiError: 404, there is no such model.
    """
    try:
        snapshot, name = live.named(model)
    except StoreError as error:
        logger.warning("%s: %s", model[:100], error)
        snapshot, name = live.current, model
    return choose_adapter(snapshot, name, said)


def explain(snapshot: Snapshot, said: Said) -> dict[str, Any]:
    """Return which group would answer a conversation, and what that rests on."""
    choice = choose_adapter(snapshot, ASSISTANT, said)
    explained = snapshot.router.explain(prompt_of(said))
    return {
        **choice.to_json(),
        "instruction": explained.decision.instruction,
        "instruction_found": explained.decision.instruction_found,
        "matched": explained.matched,
        "terms": dict(explained.terms),
        "similarities": dict(explained.similarities),
    }


def prompt_of(said: Said) -> Prompt:
    """Return what is routed: the text of a single turn, else all that the conversation says."""
    return said.turns[0] if said.is_one_turn else said
