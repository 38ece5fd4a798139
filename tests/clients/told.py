"""How a client's program tells which of its calls worked: one line of JSON a call."""

import asyncio
import inspect
import json
import sys

URL = sys.argv[1]
LONG = "one two three four " * 2000
"""More tokens than any model of the tests reads."""


def tell(**calls):
    """Make every call; none of them hides another one's failure."""
    for name, call in calls.items():
        try:
            result = call()
            if inspect.iscoroutine(result):
                result = asyncio.run(result)
            told = None if result is None or result else f"returned {result!r}"
        except Exception as error:  # noqa: BLE001
            told = f"{type(error).__name__}: {error}"[:500]
        print(json.dumps({"call": name, "wrong": told}), flush=True)  # noqa: T201


def fails_with(error, call):
    """Tell whether a call fails, and in this very way."""
    try:
        call()
    except error:
        return True
    return False
