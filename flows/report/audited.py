"""What the last audit of a run said, and what has come since."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flows.audit import outcome
from flows.report.side import Side
from flows.report.table import Cell, Table


@dataclass(frozen=True, slots=True)
class Audited:
    """A run, what is to be said of its audit, and its links."""

    about: str
    """In a sentence or two."""
    whole: bool | None
    """Whether every link held; None: it was not audited."""
    links: Table | None


def audited(sides: Sequence[Side]) -> tuple[Audited, ...]:
    """Read what `videoopd audit` kept of each run. An audit takes minutes: none is begun here."""
    return tuple(_audited(side) for side in sides)


def _audited(side: Side) -> Audited:
    last = outcome.last(side.run.path)
    if last is None:
        said = f"{side.name} has not been audited; videoopd audit {side.run.path} does it"
        return Audited(f"{said}.", None, None)
    depth = last.depth
    what = "as it was then" if last.round is None else f"as of round {last.round}"
    about = (
        f"{side.name}, {what}: audited {last.at[:16].replace('T', ' ')} UTC with"
        f" {depth.videos:.0%} of the videos decoded again and {depth.deep:.0%} of the batches"
        " sampled and scored again. "
    )
    about += (
        f"{len(last.broken)} of {len(last.verdicts)} links are broken."
        if last.broken
        else f"All {len(last.verdicts)} links hold."
    )
    if last.let_go:
        about += f" {last.let_go} parts were let go on purpose and are not proven."
    if changed := last.changed(side.run):
        about += f" Tables with other rows since: {', '.join(changed)}."
    rows: list[tuple[Cell, ...]] = []
    for verdict in last.verdicts:
        checked = verdict.checked
        counted = f"{checked.count:,} {checked.of}" if checked else f"broken: {verdict.broken}"
        rows.append(("broken" if verdict.broken else "holds", verdict.link, counted))
    head = ("", "link", "checked")
    links = Table(f"Links of {side.name}", head, tuple(rows), words=True)
    return Audited(about, not last.broken, links)
