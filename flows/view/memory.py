"""What keeps the server small beside a round that runs: few threads, and memory that goes back.

glibc keeps what is freed, a part for each thread, and polars' allocator for a second: of a million
rollouts that is as much as is in use.
"""

from __future__ import annotations

import ctypes
import os

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
_POLARS = "narenas:2,dirty_decay_ms:50,muzzy_decay_ms:0"


def stay_small() -> None:
    """Ask the allocators of this process not to keep what is freed, and polars and Lance to take
    two cores; before they are imported."""
    for name in ("POLARS_MAX_THREADS", "LANCE_CPU_THREADS"):
        os.environ.setdefault(name, "2")
    os.environ.setdefault("_RJEM_MALLOC_CONF", _POLARS)
    if (mallopt := getattr(_libc(), "mallopt", None)) is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**18)
        mallopt(_M_ARENA_MAX, 2)


def give_back() -> None:
    """Give what is freed back to the system, where the C library can (glibc)."""
    if (trim := getattr(_libc(), "malloc_trim", None)) is not None:
        trim(0)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
