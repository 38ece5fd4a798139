"""The page at ``/`` and what it shows of the store."""

from fastapi import FastAPI

from lcia.serving.live import LiveStore


def add_page(app: FastAPI, live: LiveStore) -> None:
    """Serve the page."""
