"""Annotations as people make them: some at another moment, most with ends that are too wide.

The authors of TimeLens (arXiv 2512.14698) annotated three benchmarks of this field again. In
Charades-STA 20.6 % of the sentences did not fit one moment alone, and 34.9 % had imprecise ends;
training sets they found to be worse. `LOOSE` has these shares: 21 % of the sentences are annotated
at any moment at all; the ends of the others lie up to four seconds outside, after which a further
37 % (of all) overlap the truth with an IoU of at most 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

from opd_core.tinyworld.scenes import Scene
from opd_core.types import Span


@dataclass(frozen=True, slots=True)
class Annotators:
    """How far annotations are from the truth."""

    wrong_share: float
    """Of sentences that are annotated at a random moment."""
    widening: int
    """Seconds by which each end of the others lies outside at most; whole, uniform from 0."""


LOOSE = Annotators(wrong_share=0.21, widening=4)
ANNOTATORS: dict[str, Annotators | None] = {"clean": None, "loose": LOOSE}
"""By the name that `tinyworld make --annotations` takes; None writes the truth."""


def annotated(truth: Span, scene: Scene, annotators: Annotators, rng: np.random.Generator) -> Span:
    """The span that is written down for an event; in seconds.

    A wrong moment is as long as an event may be, so that it cannot be told by its length.
    Each call draws equally often, so that one event's fate changes no other's.
    """
    wrong = rng.random() < annotators.wrong_share
    length = scene.draw_length(rng)
    start = int(rng.integers(0, scene.seconds - length + 1))
    before, after = (int(s) for s in rng.integers(0, annotators.widening + 1, size=2))
    if wrong:
        return Span(float(start), float(start + length))
    return Span(max(0.0, truth.start - before), min(float(scene.seconds), truth.end + after))
