"""Memory that runs out, and memory that libraries in C hold on to."""

import ctypes
import errno
import gc
import logging
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lcia.errors import LciaError, OutOfMemoryError

logger = logging.getLogger(__name__)

SIGNS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "bad_alloc")
"""How a RuntimeError of an allocator reads: CUDA, HIP, MPS, torch on a CPU, cuBLAS, C++."""

# glibc's mallopt.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8

_HUGE, _MADV_HUGEPAGE, _MADV_COLLAPSE = 1 << 21, 14, 25


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory, of the machine or of a device, ran out."""
    import torch  # slow: not for a command that only reads its options

    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError) and not isinstance(error, LciaError):
        return isinstance(error, torch.OutOfMemoryError) or any(s in str(error) for s in SIGNS)
    return isinstance(error, MemoryError)


@contextmanager
def memory_watched() -> Iterator[None]:
    """Say in one line that memory ran out; also a decorator.

    Raises:
        OutOfMemoryError: memory ran out inside.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        found = str(error).strip().partition("\n")[0] or "no more of it can be had"
        raise OutOfMemoryError(
            f"out of memory: {found.rstrip('.')}. What is done is kept: free memory or use a "
            "larger machine, and run the same command again. Or make a new assistant (for a "
            "stream, another output) with a smaller training.per_device_train_batch_size, "
            "generation.batch_size or generation.max_prompt_tokens."
        ) from error


def forget(error: BaseException) -> None:
    """Let go of what an error's frames hold, a model among it, so that others have the memory."""
    logger.debug("what stopped a run", exc_info=error)
    error.__traceback__ = error.__cause__ = error.__context__ = None
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    release_memory()


def release_memory() -> None:
    """Give freed memory back to the system, where the C library can (glibc).

    glibc keeps freed blocks of up to 32 MB for later ones. With batches of ever other lengths
    they do not fit again: over tasks, a process on the CPU grows to several times of what it uses.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


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


def use_huge_pages() -> None:
    """Have Linux hold what this process has allocated so far in pages of 2 MiB, where it can.

    A decode step reads all weights once, and in pages of 4 KiB the processor has to look up where
    each of them is. It is a hint: a kernel that knows no such pages, or has none, leaves
    everything as it is.
    """
    if sys.platform != "linux":
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    with open("/proc/self/maps", encoding="utf-8") as lines:
        mapped = [line.split(maxsplit=5) for line in lines]
    for place, rights, _, _, _, *named in mapped:
        path = named[0].strip() if named else ""
        if rights != "rw-p" or path not in ("", "[heap]"):
            continue
        begin, end = (int(number, 16) for number in place.split("-"))
        begin, end = -(-begin // _HUGE) * _HUGE, end // _HUGE * _HUGE
        if begin < end:
            advise(begin, end - begin, _MADV_HUGEPAGE)
            advise(begin, end - begin, _MADV_COLLAPSE)  # now, and not when the kernel has time


def bound_kept_memory() -> None:
    """Bound what a process of many threads keeps that gets inputs of ever other sizes: a server.

    glibc gives threads heaps of their own, up to eight times as many as processors, and each
    keeps what it once needed. oneDNN keeps a kernel for each of the last 1,024 shapes it met; a
    decode step needs about twenty. Call it before threads start and before the first forward pass.
    What it saves: ``python -m benchmarks.serving_fuzz``. A limit set in the environment holds.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    if platform.libc_ver()[0] == "glibc" and "MALLOC_ARENA_MAX" not in os.environ:
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 2)
