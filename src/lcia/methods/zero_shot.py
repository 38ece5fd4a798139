"""The base model as it is: where every method starts."""

from typing import ClassVar

from lcia.methods.base import Method


class ZeroShot(Method):
    """Nothing is trained: every task leaves a fresh adapter, whose B = 0, so the base answers."""

    trains: ClassVar[bool] = False
