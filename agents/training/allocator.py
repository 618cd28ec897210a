"""Keep freed memory, instead of giving it back and faulting it in again a moment later.

Training frees and allocates the same large tensors in every update. glibc returns blocks of that
size to the system at once, and the page faults of getting them back took a third of the time of an
update that is unrolled through twenty dreamed steps.
"""

import ctypes
import sys

# From glibc's malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell glibc so, for this process; returns whether it listened. Elsewhere nothing happens."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library
        return False
    settings = ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, 2**28))
    return all(mallopt(name, value) for name, value in settings)
