"""Formats of files, each behind ``Reader``."""

from lcia.data.readers.base import Problem, Reader, Record, RecordError

__all__ = ["Problem", "Reader", "Record", "RecordError"]
