"""Evaluation protocols: by which rule an answer is read, held against the truth and counted.

    strict        the prompt's own reader, no rounding, the best window, IoU > m
    timelens      TimeLens' reader, whole seconds (halves to even), the first window, IoU >= m
    qvhighlights  the prompt's own reader, no rounding, the best window, IoU >= m

The same answers differ by several points between them: with integer spans almost a tenth of IoUs
are exactly 0.5. Always name the one a number is of. In all of them an answer without a span is
IoU 0.

Another protocol is another record here. Where it reads as an older one does, it shares its columns;
else it has a span and an IoU of its own among the fields of `types.Evaluation`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from opd_core.spans.grounding import round_span, temporal_iou
from opd_core.spans.timelens_rule import parse_timelens
from opd_core.types import Span


@dataclass(frozen=True, slots=True)
class Protocol:
    name: str
    reader: Callable[[str], Span | None] | None
    """None: the reader that belongs to the prompt."""
    rounded: bool
    """Whether the answer's span is rounded to whole seconds."""
    windows: Literal["first", "best"]
    """Which span of the truth counts, where a sentence is true several times."""
    comparison: Literal[">", ">="]
    """How an IoU reaches m in R1@m."""
    column: str
    """What the fields of `types.Evaluation` are called after: `<column>_span` and, but for
    `predicted` (`iou`), `<column>_iou`. The columns of a span are `<column>_start`, `_end`."""

    @property
    def iou_column(self) -> str:
        return "iou" if self.column == "predicted" else f"{self.column}_iou"

    @property
    def words(self) -> str:
        """`read as the prompt asks, no rounding, best window, IoU > m`."""
        reader = "read as the prompt asks" if self.reader is None else "read by a rule of its own"
        rounding = "whole seconds" if self.rounded else "no rounding"
        return f"{reader}, {rounding}, {self.windows} window, IoU {self.comparison} m"

    def iou(self, span: Span | None, truth: Sequence[Span]) -> float:
        """In [0, 1], of a span that was read by this protocol."""
        if span is None:
            return 0.0
        said = round_span(span) if self.rounded else span
        windows = truth[:1] if self.windows == "first" else truth
        return max(temporal_iou(said, window) for window in windows)


PROTOCOLS = (
    Protocol("strict", None, False, "best", ">", "predicted"),
    Protocol("timelens", parse_timelens, True, "first", ">=", "timelens"),
    Protocol("qvhighlights", None, False, "best", ">=", "predicted"),
)


def judged(text: str, own: Span | None, truth: Sequence[Span]) -> dict[str, Any]:
    """What each protocol makes of an answer, by the fields of `types.Evaluation`.

    `own` is what the prompt's own reader has read, `truth` the annotated spans.

    >>> judged("3 - 7 s", Span(3.0, 7.0), [Span(3.0, 7.0)])["timelens_iou"]
    1.0
    """
    found: dict[str, Any] = {}
    for protocol in PROTOCOLS:
        span = own if protocol.reader is None else protocol.reader(text)
        found[f"{protocol.column}_span"] = span
        found[protocol.iou_column] = protocol.iou(span, truth)
    return found
