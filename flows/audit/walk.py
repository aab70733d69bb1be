"""`videoopd audit`: walks from each checkpoint back to the videos, and proves or refutes each link.

The links of the store are in `storage/audit/`; those that need the algorithm in `links.py`,
`steps.py` and `selections.py`; those for which something is done again (decoding, and with `--deep`
sampling and scoring) in `again.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flows.audit import again, links, selections, steps
from opd_core.types import VideoOPDError
from storage.audit import data as audit_data
from storage.audit import links as store
from storage.audit import takes as audit_takes
from storage.audit.divergences import divergences
from storage.audit.links import BrokenLink, Checked

if TYPE_CHECKING:
    from storage.runs.run import Run

Link = Callable[["Run"], Checked]


@dataclass(frozen=True, slots=True)
class Verdict:
    link: str
    checked: Checked | None
    broken: str | None


@dataclass(frozen=True, slots=True)
class Depth:
    """How much is done again."""

    videos: float = 1.0
    """Share of the trained examples whose videos are decoded."""
    deep: float = 0.0
    """Share of the batches of each committed round that are sampled and scored again."""
    tolerance: float | None = None
    """Nats; None: none at all on a CPU in float32."""
    seed: int | None = None


def audit(run: Run, depth: Depth) -> Iterator[Verdict]:
    """One verdict a link, from the checkpoints back to the videos; then how the tables came."""
    for name, link in chain(depth):
        try:
            yield Verdict(name, link(run), None)
        except (BrokenLink, VideoOPDError) as error:
            yield Verdict(name, None, str(error))


def chain(depth: Depth) -> list[tuple[str, Link]]:
    """The links in order, each by the name that it is told by; none rests on another's verdict."""
    generator = random.Random(depth.seed)
    made: list[tuple[str, Link]] = [
        ("checkpoints hold the weights that were committed", store.weights),
        ("each policy names its parent", store.chain),
        ("nothing stands on superseded rows", audit_takes.takes),
        ("configs are those that rows name", links.configs),
        ("steps took the selection, as often as the config says", steps.steps),
        ("selections follow from their inputs", selections.selections),
        ("scores are the update's teacher's", links.scores),
        ("divergences are of kept scores, and possible", divergences),
        ("rollouts are of exactly the parent's weights", links.rollouts),
        ("spans and IoUs follow from the answers", links.answers),
        ("examples are their annotations", store.examples),
        ("draws took what the annotation files held", audit_data.draws),
    ]
    if depth.videos > 0:
        made.append(
            ("videos are unchanged", lambda run: again.videos(run, depth.videos, generator))
        )
    if depth.deep > 0:
        made += [
            (
                "sampled again",
                lambda run: again.sampled(run, depth.deep, depth.tolerance, generator),
            ),
            ("scored again", lambda run: again.scored(run, depth.deep, depth.tolerance, generator)),
        ]
    return [
        *made,
        ("tables were only appended to", store.appended),
        ("every attempt is accounted for", store.attempts),
    ]
