"""What leaves the frame store: clips that were not used for longest, and what Lance keeps of them.

For the holder of the store's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import lance

    from storage.clip_index import Kept

EVICT_ABOVE, EVICT_TO = 0.9, 0.7
"""Shares of the bound. What is between 0.9 and 1 is for rows that are deleted and not yet cleared:
a fragment is rewritten once a tenth of it is gone."""
FRAGMENT_BYTES = 64 << 20
JOIN_ABOVE = 16
"""Small fragments and old versions that are let be."""


def oldest(
    rows: Mapping[str, Kept], last_use: Callable[[], Mapping[str, int]], needed: int, max_bytes: int
) -> set[str]:
    """The clips to remove, so that `needed` bytes have room; `last_use` is asked when some must."""
    size = sum(kept.bytes for kept in rows.values()) + needed
    evicted: set[str] = set()
    if size <= EVICT_ABOVE * max_bytes:
        return evicted
    used = last_use()
    for key in sorted(rows, key=lambda key: max(used.get(key, 0), rows[key].stored_at)):
        if size <= EVICT_TO * max_bytes:
            break
        size -= rows[key].bytes
        evicted.add(key)
    return evicted


def clear_up(dataset: lance.LanceDataset, bytes_a_clip: int, evicted: bool) -> bool:
    """Join small fragments, give back the space of deleted rows, forget older versions.

    Returns whether there was enough of it.
    """
    counts = [fragment.count_rows() for fragment in dataset.get_fragments()]
    target = max(1, FRAGMENT_BYTES // bytes_a_clip)
    small = sum(count < target for count in counts)
    if evicted or small > JOIN_ABOVE:
        dataset.optimize.compact_files(target_rows_per_fragment=target, num_threads=1)
    if not (evicted or small > JOIN_ABOVE or len(dataset.versions()) > JOIN_ABOVE):
        return False
    # The lock is held, so what nobody refers to was left by a writer that was killed.
    dataset.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
    return True
