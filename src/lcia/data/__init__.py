"""Samples, the files they come from, tasks and streams of tasks."""

from lcia.data.reading import DataReport, Lengths, Reading, check, read, read_all
from lcia.data.sample import Image, Message, Sample, Task, check_name
from lcia.data.source import SuperNIConfig, TaskSource
from lcia.data.stream import TaskConfig, hold_out, load_stream, load_task, load_tasks

__all__ = [
    "DataReport",
    "Image",
    "Lengths",
    "Message",
    "Reading",
    "Sample",
    "SuperNIConfig",
    "Task",
    "TaskConfig",
    "TaskSource",
    "check",
    "check_name",
    "hold_out",
    "load_stream",
    "load_task",
    "load_tasks",
    "read",
    "read_all",
]
