"""What a table needs once it is large: few fragments, and an index on the id that is looked up.

`Tables.compact` joins the rows of a round into fragments of about a thousand. At a million rows
those would be a thousand files, and a random row costs as much as it has to open. So 17 fragments
of a size are joined into one of the next, 16 times larger: a row is rewritten once a size, three
times in the first four million, which matters because the tags of rounds keep what was replaced.

Run once a round, before the tags are set; rows appended since are searched without the index.
What keeps rows apart is the lock and the key check of `lance_tables.py`, never the index.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from storage import locks
from storage.files import disk_troubles
from storage.tables import place

if TYPE_CHECKING:
    import lance

    from storage.tables.lance_tables import Tables

SIZES = (1024, 16_384, 262_144, 4_194_304)
"""Rows of a fragment; those of one size are joined to the next."""
JOIN_ABOVE = 16
INDEXED = {
    **dict.fromkeys(("rollouts", "teacher_scores", "selections", "trained_rollouts"), "rollout_id"),
    **dict.fromkeys(("examples", "teacher_predictions"), "example_id"),
}
INDEX_ABOVE_ROWS = 50_000
"""Fewer rows are searched in milliseconds. More get a part of the index of their own: rewriting the
whole of it each time would cost disk in the square of the rounds."""


def upkeep(tables: Tables, name: str, timeout: float = 120.0) -> None:
    """Joins fragments and makes or extends the index, where there is enough of either."""
    path = tables.folder / ".locks" / f"{name}.lock"
    with disk_troubles(tables.folder), locks.held(path, "upkeep", timeout):
        dataset = place.opened(tables.folder, name)
        for smallest, target in pairwise(SIZES):
            sizes = [fragment.count_rows() for fragment in dataset.get_fragments()]
            if sum(smallest <= size < target for size in sizes) > JOIN_ABOVE:
                dataset.optimize.compact_files(target_rows_per_fragment=target, num_threads=1)
        if name not in INDEXED or _unindexed_rows(dataset) < INDEX_ABOVE_ROWS:
            return
        if dataset.describe_indices():
            dataset.optimize.optimize_indices(num_indices_to_merge=0)
        else:
            dataset.create_scalar_index(INDEXED[name], "BTREE")


def _unindexed_rows(dataset: lance.LanceDataset) -> int:
    indices = dataset.describe_indices()
    if not indices:
        return int(dataset.count_rows())
    return int(dataset.stats.index_stats(indices[0].name)["num_unindexed_rows"])
