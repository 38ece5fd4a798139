"""Memory that is given back, memory that a training step keeps, and the bounds of a server."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from lcia.memory import release_memory


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


FAULTS = """
import resource, torch
from lcia.memory import keep_freed_memory
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


HEAPS = """
import threading
from lcia.memory import bound_kept_memory
{call}
def work(ready, end):
    blocks = [bytearray(5_000) for _ in range(50)]  # from malloc, not from Python's own pools
    ready.wait()
    end.wait()
ready, end = threading.Barrier(17), threading.Event()
for _ in range(16):
    threading.Thread(target=work, args=(ready, end)).start()
ready.wait()
heaps = 0
for line in open("/proc/self/maps"):  # a thread's heap is 64 MB of addresses, aligned
    begin = int(line.split("-")[0], 16)
    heaps += begin % (1 << 26) == 0 and line.split()[1] == "rw-p" and len(line.split()) == 5
end.set()
print(heaps)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="an option of glibc")
def test_a_servers_threads_share_two_heaps():
    def heaps(call: str) -> int:
        command = [sys.executable, "-c", HEAPS.format(call=call)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert heaps("bound_kept_memory()") <= 1  # the first is the main one, elsewhere
    assert heaps("pass") > 4
