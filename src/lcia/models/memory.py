"""Memory of the C library while a model trains on a CPU."""

import ctypes
import platform

# glibc's mallopt.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> None:
    """Let glibc keep what a training step frees, instead of giving it back to the system.

    A step allocates the same large tensors as the one before. Returned and fetched again, every
    page of them is cleared by the kernel first: over a quarter of the time of a step of
    SmolLM2-135M, by ``python -m benchmarks.speed.step``. The process stays at its largest size.
    Other C libraries than glibc are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for option, value in (
        (_MMAP_THRESHOLD, 1 << 30),
        (_TRIM_THRESHOLD, (1 << 31) - 1),
        (_TOP_PAD, 1 << 26),
    ):
        libc.mallopt(option, value)
