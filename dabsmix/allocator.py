"""The C library's allocator, told to keep what is freed: without it a CPU step waits for page faults."""

import ctypes
import sys

__all__ = ["keep_freed_memory"]

# malloc.h of glibc
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> None:
    """Let freed tensors' memory be used again by the next ones.

    By default glibc gives every large block back to the kernel when it is freed, and each tensor of the next step takes
    fresh pages, one fault for every 4 KiB. A training step allocates and frees the same sizes again and again: kept in
    the process, they cost nothing. What the process holds is then its peak. Nothing happens off Linux or on another
    C library.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
