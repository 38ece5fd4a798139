"""Where a list of tasks comes from."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, model_validator

from lcia.data.sample import Task
from lcia.data.stream import TaskConfig, load_stream, load_tasks
from lcia.data.superni import SuperNIConfig


class TaskSource(BaseModel):
    """Tasks: listed, of a built-in stream, or of a checkout; exactly one of the three.

    Attributes:
        tasks: the tasks, in order; or
        stream: the name of a stream that ships with lcia, ``builtin:skills``; or
        superni: tasks of a Super-NaturalInstructions checkout.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: tuple[TaskConfig, ...] = ()
    stream: str | None = None
    superni: SuperNIConfig | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "TaskSource":
        given = [bool(self.tasks), self.stream is not None, self.superni is not None]
        if sum(given) != 1:
            raise ValueError("expected exactly one of tasks, stream and superni.")
        return self

    def read_tasks(self, *, base: str | Path = ".") -> tuple[Task, ...]:
        """Return the tasks, their files read and checked.

        Args:
            base: the folder relative paths start from: that of the stream's file.

        Raises:
            ConfigError: no such stream or task, two tasks of one name, a variable is not set.
            DataError: a file cannot be read or used, or is too small to hold samples out of it.
            MissingDependencyError: a package that carries a stream's data is not installed.
        """
        if self.stream is not None:
            return load_stream(self.stream)
        entries = self.tasks if self.superni is None else self.superni.entries(base=base)
        return load_tasks(entries, base=base)
