"""Memory for frames that goes back to the system with them."""

from __future__ import annotations

import contextlib
import ctypes
import mmap

import numpy as np
from jaxtyping import UInt8


def frame_pages(count: int, height: int, width: int) -> UInt8[np.ndarray, "T height width 3"]:
    """Black frames in pages of their own.

    The allocator keeps what is freed for the thread that asked for it, and every call of `VideoCrop` has a thread of its own: from
    `np.empty` the process would go on holding several clips that nobody has any more.
    """
    pages = mmap.mmap(-1, count * height * width * 3, access=mmap.ACCESS_COPY)
    with contextlib.suppress(AttributeError, OSError):  # where there are no huge pages
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8).reshape(count, height, width, 3)


def trim() -> None:
    """Gives what the allocator keeps for nobody back to the system.

    A decoder's frames are freed by other threads than those that asked for them, and glibc goes on holding them in the heap of each: after 80 windows of
    10 s of 720p a process stood 82 MB above its start at most, so trimmed 63 MB.
    """
    if _malloc_trim is not None:
        _malloc_trim(0)


def _find_trim():
    with contextlib.suppress(OSError, AttributeError, TypeError):  # only glibc has it
        return ctypes.CDLL(None).malloc_trim
    return None


_malloc_trim = _find_trim()
