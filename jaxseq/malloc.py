"""Options of glibc's malloc that ``import jaxseq`` sets: freed memory is kept and used again.

XLA's CPU backend allocates the temporary buffer of a program at every call and frees it at the end. glibc maps such a
large buffer anew each time, and the kernel fills its pages with zeros when they are first touched. With these options
large buffers come from the heap, which never shrinks: the process keeps the most memory that it ever used at one time.
A training step on two cores is 1.06 to 1.37 times as fast (docs/performance.md, training steps).

- ``M_MMAP_MAX = 0``: no mapping for a single buffer.
- ``M_TRIM_THRESHOLD = 2**31 - 1``: the top of the heap is not returned to the kernel.
- ``M_ARENA_MAX = 1``: all threads use the main heap; the heaps of other threads hold no buffer above 64 MB.

They have no effect on other C libraries and on memory of accelerators. ``JAXSEQ_MALLOC=off`` in the environment leaves
malloc alone, as does any variable by which a user sets these options (``MALLOC_*`` and ``GLIBC_TUNABLES``).
"""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
OPTIONS = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_ARENA_MAX: 1}


def set_malloc_options() -> bool:
    """Set the options; False where the environment forbids it or the C library is not glibc."""
    off = os.environ.get("JAXSEQ_MALLOC") == "off" or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if off or any(name.startswith("MALLOC_") for name in os.environ) or not _is_glibc():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all([mallopt(option, value) == 1 for option, value in OPTIONS.items()])


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):  # other systems know no such name
        return False
