"""The learning loop and the store it commits to."""

from lcia.learner.journal import Journal, Listener, read_journal
from lcia.learner.learner import ContinualLearner, Outcome, check_task, instructions_of, load_host
from lcia.learner.store import Run, Store, Version

__all__ = [
    "ContinualLearner",
    "Journal",
    "Listener",
    "Outcome",
    "Run",
    "Store",
    "Version",
    "check_task",
    "instructions_of",
    "load_host",
    "read_journal",
]
