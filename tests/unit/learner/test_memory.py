"""Freed memory goes back to the system."""

import sys
from pathlib import Path

import pytest

from lcia.learner.memory import release_memory


def resident_mb() -> float:
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmRSS")).split()[1]) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="measures through /proc")
def test_freed_blocks_below_a_used_one_are_given_back():
    blocks = [bytearray(b"x") * 100_000 for _ in range(2000)]
    pin = blocks[-1]
    full = resident_mb()
    del blocks
    release_memory()
    assert resident_mb() < full - 150
    assert len(pin) == 100_000
