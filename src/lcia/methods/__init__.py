"""Continual-learning methods, one file each."""

from lcia.methods.base import Method, TaskContext

__all__ = ["Method", "TaskContext"]
