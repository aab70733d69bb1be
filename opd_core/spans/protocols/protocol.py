"""What an evaluation protocol says of itself; one a module beside this one, or in another package.

The same answers differ by several points between protocols: with integer spans almost a tenth of
IoUs are exactly 0.5. Always name the one a number is of. In all of them an answer without a span is
IoU 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from opd_core.spans.grounding import temporal_iou
from opd_core.types import Span


@dataclass(frozen=True, slots=True)
class Protocol:
    """The rule by which an answer is read, held against the truth and counted."""

    about: str
    """How it reads, rounds, compares and counts, in a few words that stand below its numbers."""
    reader: Callable[[str], Span | None] | None = None
    """The span of an answer, or None; without a reader, what the prompt's own reads."""
    rounding: Callable[[Span], Span] | None = None
    """Of the answer's span; it may become empty."""
    windows: Literal["first", "best"] = "best"
    """Which span of the truth counts, where a sentence is true several times."""
    overlap: Callable[[Span, Span], float] = temporal_iou
    """How well an answer fits a true span, in [0, 1]."""
    thresholds: tuple[float, ...] = (0.3, 0.5, 0.7)
    """The m of R1@m, the share of examples whose answer reaches m;"""
    comparison: Literal[">", ">="] = ">="
    """how an IoU reaches m."""

    @property
    def metrics(self) -> dict[str, str]:
        """The numbers that it gives: the end of a metric's name -> what people call it.

        >>> Protocol("as an example", thresholds=(0.5,)).metrics
        {'miou': 'mIoU', 'r1_50': 'R1@0.5'}
        """
        return {"miou": "mIoU", **{recall(m): f"R1@{m:g}" for m in self.thresholds}}

    def read(self, text: str, own: Span | None) -> Span | None:
        """The span of an answer, before it is rounded; `own` is what the prompt's reader read."""
        return own if self.reader is None else self.reader(text)

    def iou(self, span: Span | None, truth: Sequence[Span]) -> float:
        """Overlap with the truth, in [0, 1], of a span that was read by this protocol."""
        if span is None:
            return 0.0
        said = span if self.rounding is None else self.rounding(span)
        windows = truth[:1] if self.windows == "first" else truth
        return max(self.overlap(said, window) for window in windows)


def recall(m: float) -> str:
    """How the name of R1@m ends: `r1_50`."""
    return f"r1_{m * 100:g}"
