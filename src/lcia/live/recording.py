"""Keeping a receipt of every answer that a server gives."""

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Sequence
from typing import Any

from lcia.live.database import DatabaseError
from lcia.live.inbox import Receipts
from lcia.live.releases.canary import Answered
from lcia.live.releases.serving import Trial
from lcia.serving.engine.job import Delta
from lcia.serving.http.service import Prepared
from lcia.serving.live import BASE
from lcia.store.audit import acting_key

logger = logging.getLogger(__name__)

LOOK_S = 600.0
"""Seconds between two looks for texts that have been kept for long enough."""

Given = tuple[str, Prepared, str, Delta]
"""The id of an answer, what it answers, its text and its last piece of news."""


class Recorder:
    """Writes receipts before an answer's last word is sent, on a thread.

    An answer whose receipt cannot be written is given all the same; the log says so.

    Args:
        receipts: where they go.
        texts: whether prompts and answers are kept, too.
        trial: counts answers while a new version is tried; None: none is.
        keep_days: how long texts are kept; None: until they are forgotten.
    """

    def __init__(
        self,
        receipts: Receipts,
        *,
        texts: bool,
        trial: Trial | None = None,
        keep_days: float | None = None,
    ) -> None:
        self._receipts = receipts
        self._texts = texts
        self._trial = trial
        self._keep_s = None if keep_days is None else keep_days * 86_400
        self._looked = -math.inf

    async def __call__(self, given: Sequence[Given]) -> None:
        """Keep the receipts of answers."""
        rows = [self._row(*one) for one in given]
        try:
            await asyncio.to_thread(self._keep, rows)
        except DatabaseError as error:
            logger.error("no receipt of %s: %s", given[0][0], error)
        await self._count(
            [
                Answered(
                    id=answer,
                    version=prepared.choice.version,
                    text=text,
                    finish_reason=last.finish_reason,
                )
                for answer, prepared, text, last in given
                if _follows(prepared)
            ]
        )

    async def failed(self, prepared: Prepared) -> None:
        """Count an answer that failed."""
        if _follows(prepared):
            one = Answered(id=uuid.uuid4().hex, version=prepared.choice.version, text=None)
            await self._count([one])

    async def _count(self, answered: Sequence[Answered]) -> None:
        if self._trial is not None and answered:
            await asyncio.to_thread(self._trial.count, answered)

    def _keep(self, rows: Sequence[dict[str, Any]]) -> None:
        self._receipts.keep(rows)
        if self._keep_s is not None and time.monotonic() - self._looked > LOOK_S:
            self._looked = time.monotonic()
            self._receipts.drop_texts(older_than_s=self._keep_s)

    def _row(self, answer: str, prepared: Prepared, text: str, last: Delta) -> dict[str, Any]:
        choice, asked = prepared.choice, prepared.asked
        decision, sampling = choice.decision, prepared.prompt.sampling
        turns = [
            {"role": {"developer": "system"}.get(m.role, m.role), "content": m.text}
            for m in asked.conversation
        ]
        seen = any(m.image_urls for m in asked.conversation)
        return {
            "id": answer,
            "model": asked.model,
            "version": choice.version,
            "group": choice.group,
            "adapter": choice.adapter[0] if choice.adapter else None,
            "reason": choice.reason,
            "similarity": decision.similarity if decision else None,
            "sampling": {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "seed": sampling.seed,
                "max_tokens": asked.answer_tokens,
            },
            "prompt_tokens": len(prepared.prompt.ids),
            "answer_tokens": last.tokens,
            "finish_reason": last.finish_reason,
            "prompt": turns if self._texts and not seen else None,
            "answer": text if self._texts else None,
            "key": acting_key(),
        }


def _follows(prepared: Prepared) -> bool:
    """Tell whether the client left the version to the server."""
    return prepared.asked.model != BASE and "@" not in prepared.asked.model
