"""Endpoints: receipts of answers, feedback on them, and the inbox where it is decided on."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from lcia.learner import Store
from lcia.live.api import (
    EditRequest,
    FeedbackRequest,
    LearnRequest,
    answered,
    check_origin,
    job_record,
    parse,
    tree,
)
from lcia.live.database import Database
from lcia.live.feedback.teaching import marked, teach
from lcia.live.inbox import ACCEPTED, REJECTED, STATES, Entry, Inbox, Receipts
from lcia.live.orders import AUTO
from lcia.serving.config import AccessConfig
from lcia.serving.http.api_error import ApiError


def add_feedback(app: FastAPI, access: AccessConfig, database: Database) -> None:
    """Show receipts and take feedback."""
    receipts, inbox = Receipts(database), Inbox(database)

    @app.get("/v1/lcia/receipts/{answer:path}")
    async def receipt(answer: str) -> Response:
        return await answered(lambda: {"object": "lcia.receipt", **receipts.get(answer)})

    @app.post("/v1/feedback")
    async def feedback(request: Request) -> Response:
        asked = parse(FeedbackRequest, await tree(request, access))
        if asked.rating is None and asked.correction is None and asked.comment is None:
            raise ApiError(
                400, "Expected a rating, a correction or a comment.", code="invalid_value"
            )

        def add() -> dict[str, Any]:
            entry = inbox.add(
                asked.id,
                rating=asked.rating,
                correction=asked.correction,
                comment=asked.comment,
                prompt=asked.turns,
            )
            return {
                "id": entry["number"],
                "object": "lcia.feedback",
                "answer": asked.id,
                "state": entry["state"],
                "created_at": entry["created_at"],
            }

        return await answered(add)


def add_inbox(app: FastAPI, access: AccessConfig, store: Store, database: Database) -> None:
    """List what people said, decide on it, and queue jobs that learn it."""
    inbox, base = Inbox(database), "/v1/lcia/inbox"

    @app.get(base)
    async def listed(request: Request) -> Response:
        state = request.query_params.get("state")
        if state is not None and state not in STATES:
            raise ApiError(
                400, f"'state': expected one of {', '.join(STATES)}.", code="invalid_value"
            )

        def page() -> dict[str, Any]:
            entries = inbox.listed()
            marks = marked(entries)
            rows = [
                inbox_record(entry, mark=marks.get(entry["number"]))
                for entry in entries
                if state in (None, entry["state"])
            ]
            return {"object": "list", "data": rows, "counts": inbox.counts()}

        return await answered(page)

    @app.get(base + "/{number:int}")
    async def show(number: int) -> Response:
        return await answered(lambda: inbox_record(inbox.get(number)))

    def add_decision(name: str, state: str) -> None:
        @app.post(base + "/{number:int}/" + name)
        async def decide(number: int, request: Request) -> Response:
            check_origin(request, access)

            def act() -> dict[str, Any]:
                inbox.decide([number], state)
                return inbox_record(inbox.get(number))

            return await answered(act)

    for name, state in (("accept", ACCEPTED), ("reject", REJECTED)):
        add_decision(name, state)

    @app.post(base + "/{number:int}/edit")
    async def edit(number: int, request: Request) -> Response:
        asked = parse(EditRequest, await tree(request, access))

        def act() -> dict[str, Any]:
            inbox.edit(number, asked.correction, prompt=asked.prompt)
            return inbox_record(inbox.get(number))

        return await answered(act)

    @app.post(base + "/learn")
    async def learn(request: Request) -> Response:
        asked = parse(LearnRequest, await tree(request, access))
        wanted: Mapping[str, Any] = {**AUTO, "n_epochs": asked.n_epochs}

        def act() -> dict[str, Any]:
            fields: dict[str, Any] = {"name": asked.suffix, "seed": asked.seed}
            made = teach(store, database, **fields, hyperparameters=wanted)
            return {"object": "list", "data": [job_record(job) for job in made]}

        return await answered(act)


def inbox_record(entry: Entry, *, mark: str | None = None) -> dict[str, Any]:
    """Return an entry of the inbox as clients see it.

    Args:
        entry: with version and group of its answer.
        mark: what a person should look at before it is learned.
    """
    told = {"number": "id", "receipt": "answer_id"}
    fields = {told.get(name, name): value for name, value in entry.items()}
    return {"object": "lcia.inbox_entry", **fields, "mark": mark}
