"""What the annotation files of a config hold now, brought into a run's tables.

New examples are appended, and what makes none is quarantined. Of what was read before, only the
changes are recorded (`data_changes`): a run draws and evaluates what the files hold now, and keeps
every annotation that its rows stand on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from opd_core.config.load import Config
from opd_core.types import DataChange, GroundingExample, QuarantinedItem, VideoOPDError
from storage.files import write_json
from storage.runs.run import Run
from storage.tables.present import ADDED, CORRECTED, MOVED, REMOVED, RETURNED, newest
from storage.tables.provenance import git_commit
from storage.tables.schemas import SCHEMA_VERSION

_READING = " (reading "
"""Before the number of the reading that found something else wrong at a place."""


def import_annotations(run: Run, config: Config) -> None:
    """Read the annotation files into the run, unless nothing touched them since this program did.

    Raises `VideoOPDError` where a file cannot be read or holds no usable example.
    """
    marker, stamp = run.path / ".cache" / "annotations.json", _stamp(config)
    if stamp is not None and _read_before(marker) == stamp:
        return
    examples, rejected = _read(config)
    changes = run.read("data_changes", DataChange)
    last = newest(changes)
    number = 1 + max((change.sequence for change in changes), default=0)
    version = run.updates().select(pl.col("policy_version").max()).collect().item() or 0
    before = _states(run, last)
    example_changes = list(_example_changes(examples, before, number, version))
    faults, fault_changes = _fault_changes(run, rejected, last, number, version)
    known = set(before)
    # Changes first: killed in between, the next reading finds the examples missing and goes on.
    run.append("data_changes", [*example_changes, *fault_changes])
    run.append("examples", [e for e in examples if e.example_id not in known])
    run.append("quarantine", faults, stage="import")
    if stamp is not None and _stamp(config) == stamp:  # not changed while they were read
        marker.parent.mkdir(exist_ok=True)
        write_json(marker, stamp)


def _stamp(config: Config) -> dict[str, Any] | None:
    """What says that both files are as they were; the time of change of the inode cannot be set."""
    try:
        stats = {path: path.stat() for path in (config.data.train, config.data.eval)}
    except OSError:
        return None
    files = [
        [str(path), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for path, s in stats.items()
    ]
    return {"files": files, "git_commit": git_commit(), "schema_version": SCHEMA_VERSION}


def _read_before(marker: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(marker.read_text())
    except (OSError, ValueError):
        return None
    return content


def changes_of_round(run: Run, policy_version: int) -> str | None:
    """What changed in the data before or in the round that samples from a policy, in words."""
    of_examples = run.examples().select(item_id="example_id")
    rows = (
        run.data_changes()
        .filter(pl.col("newest_policy") == policy_version)
        .join(of_examples, on="item_id", how="semi")
        .group_by("change")
        .len()
        .collect()
    )
    counts = dict(rows.iter_rows())
    parts = (
        (counts.get(ADDED, 0) + counts.get(RETURNED, 0), "came"),
        (counts.get(REMOVED, 0), "went"),
        (counts.get(MOVED, 0), "changed their split"),
        (counts.get(CORRECTED, 0), "have another duration or source"),
    )
    said = [f"{count:,} {what}" for count, what in parts if count]
    return ", ".join(said) or None


def is_annotated_now(run: Run) -> Callable[[str], bool]:
    """Whether an item that was quarantined at import stands in the annotation files still."""
    last = newest(run.read("data_changes", DataChange))
    return lambda item_id: not _is_removed(last, item_id)


def _read(config: Config) -> tuple[list[GroundingExample], list[QuarantinedItem]]:
    from opd_core.annotations.timelens import read_timelens
    from opd_core.faults import ANNOTATION

    examples: list[GroundingExample] = []
    rejected: list[QuarantinedItem] = []
    evaluated: set[str] = set()
    for path, split in ((config.data.eval, "eval"), (config.data.train, "train")):
        for item in read_timelens(path, split):
            if isinstance(item, QuarantinedItem):
                rejected.append(item)
            elif split == "train" and item.example_id in evaluated:
                place = f"{path.name}:{item.example_id}"
                reason = f"this annotation of {path.name} is in the eval split too"
                rejected.append(
                    QuarantinedItem(place, "import", item.video_path, reason, None, ANNOTATION)
                )
            else:
                examples.append(item)
        evaluated = {e.example_id for e in examples}
    counts = {split: sum(e.split == split for e in examples) for split in ("train", "eval")}
    for split, path in (("train", config.data.train), ("eval", config.data.eval)):
        if not counts[split]:
            first = f" (first problem: {rejected[0].reason})" if rejected else ""
            raise VideoOPDError(f"{path} holds no usable example{first}; give it at least one")
    return examples, rejected


_State = tuple[str | None, float | None, str | None]
"""Split, duration, source."""


def _states(run: Run, last: dict[str, DataChange]) -> dict[str, _State]:
    """How each example of the tables was when the files were last read."""
    rows = run.examples().select("example_id", "split", "duration", "source").collect()
    states: dict[str, _State] = {row[0]: row[1:] for row in rows.iter_rows()}
    for item_id, change in last.items():
        if item_id in states:
            states[item_id] = (change.split, change.duration, change.source)
    return states


def _example_changes(
    examples: list[GroundingExample], before: dict[str, _State], number: int, version: int
) -> Iterator[DataChange]:
    """Changes of examples; none of a run that has read nothing yet."""
    if not before:
        return
    gone = {item_id for item_id, (split, *_) in before.items() if split is not None}
    for e in examples:
        now = (e.split, e.duration, e.source)
        was = before.get(e.example_id)
        gone.discard(e.example_id)
        if was == now:
            continue
        if was is None:
            change = ADDED
        elif was[0] is None:
            change = RETURNED
        else:
            change = CORRECTED if was[0] == e.split else MOVED
        yield DataChange(number, e.example_id, change, *now, version)
    for item_id in sorted(gone):
        yield DataChange(number, item_id, REMOVED, None, None, None, version)


def _fault_changes(
    run: Run,
    rejected: list[QuarantinedItem],
    last: dict[str, DataChange],
    number: int,
    version: int,
) -> tuple[list[QuarantinedItem], list[DataChange]]:
    """New rows of `quarantine`, and what became of those that earlier readings made."""
    rows = run.quarantine().filter(pl.col("stage") == "import").select("item_id", "reason")
    known = {
        (item_id.split(_READING)[0], reason): item_id
        for item_id, reason in rows.collect().iter_rows()
    }
    ids = set(known.values())
    fresh: list[QuarantinedItem] = []
    changes: list[DataChange] = []
    not_met = {item_id for item_id in ids if not _is_removed(last, item_id) and ":" in item_id}
    for item in rejected:
        item_id = known.get((item.item_id, item.reason))
        if item_id is None:
            name = f"{item.item_id}{_READING}{number})" if item.item_id in ids else item.item_id
            fresh.append(replace(item, item_id=name))
            continue
        not_met.discard(item_id)
        if _is_removed(last, item_id):
            changes.append(DataChange(number, item_id, RETURNED, None, None, None, version))
    changes += [
        DataChange(number, item_id, REMOVED, None, None, None, version)
        for item_id in sorted(not_met)
    ]
    return fresh, changes


def _is_removed(last: dict[str, DataChange], item_id: str) -> bool:
    return item_id in last and last[item_id].change == REMOVED
