"""What a process of a cluster frees stays its own for the next piece.

glibc gives the top of its heap back once more of it is free than twice the largest block that was
freed before. A process that has only scored has freed small ones: it gives back, and is given again
page by page, what a forward needs, a fifth of a tiny teacher's time. A process that has sampled has
freed caches of keys and values, and does not.
"""

from __future__ import annotations

import ctypes

KEPT_BYTES = 256 << 20
LARGEST_IN_HEAP_BYTES = 32 << 20
"""glibc's own bound; what is larger comes from the system and goes back to it."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """From now on, in this process. Changes nothing where libc is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, LARGEST_IN_HEAP_BYTES)
