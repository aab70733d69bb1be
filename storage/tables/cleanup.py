"""Removes what no round needs any more: old versions of a table, and files that no version has.

Every append and compaction leaves a version, and compactions leave the files that they replaced.
Kept are: versions with a tag; the first, empty one, where the audit begins; all since the tag of
the round before, so that the history of two rounds can be read; and those of the last hour, because
another process may be reading one. A LazyFrame that is held for longer may lose its files and then
fails; scan the table again, or pin it to a round's tag. A version that this program did not make is
never removed: it is the evidence of who did.

What is lost is Lance's own record of who committed a removed version; the rows carry run, config,
commit and attempt themselves.

Files of killed writes go at once, whatever their age (Lance alone would wait a week): all writers
hold the table's lock, so nobody else is writing one.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from storage import locks
from storage.files import disk_troubles
from storage.tables import history, place

if TYPE_CHECKING:
    import lance

    from storage.tables.lance_tables import Tables

KEEP_SECONDS = 3600.0
"""Versions younger than this may be in use."""


def clean_up(
    tables: Tables, name: str, run_id: str, since_tag: str, timeout: float = 120.0
) -> list[int]:
    """Returns the versions that were removed; none before the tag `since_tag` exists."""
    path = tables.folder / ".locks" / f"{name}.lock"
    with disk_troubles(tables.folder), locks.held(path, "clean-up", timeout):
        dataset = place.opened(tables.folder, name)
        gone = _not_needed(dataset, run_id, since_tag)
        # Naming the newest version, which Lance never removes, clears files alone.
        dataset.cleanup_old_versions(
            versions=gone or [dataset.version],
            delete_unverified=True,
            error_if_tagged_old_versions=False,
        )
    return gone


def _not_needed(dataset: lance.LanceDataset, run_id: str, since_tag: str) -> list[int]:
    tags = {tag: int(content["version"]) for tag, content in dataset.tags.list().items()}
    if since_tag not in tags:
        return []
    before = time.time() - KEEP_SECONDS
    not_needed = []
    for entry in dataset.versions():
        version = int(entry["version"])
        if version == 1 or version >= tags[since_tag] or version in tags.values():
            continue
        if entry["timestamp"].timestamp() <= before and history.is_ours(
            history.commit(dataset, version), run_id
        ):
            not_needed.append(version)
    return not_needed
