"""The learning loop and the store it commits to."""

from lcia.decision.placing import instructions_of
from lcia.learner.importing import import_adapter, import_with_data
from lcia.learner.joining import Joining, consolidate
from lcia.learner.learning import ContinualLearner, check_task, load_host
from lcia.learner.lifecycle import merge_groups, rename_group, retire_group, split_group
from lcia.learner.outcome import Outcome
from lcia.store.journal import Journal, Listener, read_journal
from lcia.store.store import Store
from lcia.store.transaction import Run
from lcia.store.version import Version

__all__ = [
    "ContinualLearner",
    "Joining",
    "Journal",
    "Listener",
    "Outcome",
    "Run",
    "Store",
    "Version",
    "check_task",
    "consolidate",
    "import_adapter",
    "import_with_data",
    "instructions_of",
    "load_host",
    "merge_groups",
    "read_journal",
    "rename_group",
    "retire_group",
    "split_group",
]
