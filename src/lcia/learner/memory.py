"""Memory that the C library holds on to."""

import ctypes
import sys


def release_memory() -> None:
    """Give freed memory back to the system, where the C library can (glibc).

    glibc keeps freed blocks of up to 32 MB for later ones. With batches of ever other lengths
    they do not fit again: over tasks, a process on the CPU grows to several times of what it uses.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
