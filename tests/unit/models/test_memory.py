"""Memory that a step frees stays with the process."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from lcia.models.memory import keep_freed_memory
{call}
def step():  # 64 MB: more than glibc ever keeps by itself
    return float((torch.ones(16_000_000) + 1).sum())
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call: str) -> int:
    command = [sys.executable, "-c", FAULTS.format(call=call)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc")
def test_freed_memory_is_not_fetched_again():
    assert faults("keep_freed_memory()") < faults("pass") / 3
