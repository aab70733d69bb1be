"""What annotations of a tiny world have wrong, and how well an unreliable teacher tells (TRPV).

The truth is kept beside the training split; only this analysis reads it, of a study or of the demo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from opd_core.annotations.timelens import read_timelens
from opd_core.spans.grounding import temporal_iou
from opd_core.types import GroundingExample, Span

BAD_BELOW = 0.5
"""IoU with the truth under which an annotation counts as bad."""
THRESHOLDS = tuple(tenths / 10 for tenths in range(1, 10))


@dataclass(frozen=True, slots=True)
class Annotated:
    """One training sentence: what is written down, and what is true."""

    annotation: Span
    truth: Span

    @property
    def iou(self) -> float:
        return temporal_iou(self.annotation, self.truth)

    @property
    def seconds_longer(self) -> float:
        return length(self.annotation) - length(self.truth)


@dataclass(frozen=True, slots=True)
class Judged:
    """A training sentence that the teacher answered."""

    teacher_iou: float
    """Mean IoU of its answers with the annotation: what TRPV looks at."""
    annotation_iou: float
    """IoU of the annotation with the truth, which TRPV cannot see."""


@dataclass(frozen=True, slots=True)
class Filtering:
    """TRPV as a filter of bad annotations, at one `min_teacher_iou`."""

    min_teacher_iou: float
    dropped: float
    """Share of all sentences."""
    precision: float | None
    """Share of the dropped that are bad; None where none is dropped."""
    recall: float | None
    """Share of the bad that are dropped; None where none is bad."""


def length(span: Span) -> float:
    """Seconds."""
    return span.end - span.start


def filtering(judged: Sequence[Judged]) -> tuple[Filtering, ...]:
    """Precision and recall at each of `THRESHOLDS`; what does not reach one is dropped."""
    bad = any(one.annotation_iou < BAD_BELOW for one in judged)
    return tuple(filtering_at(threshold, judged) for threshold in THRESHOLDS) if bad else ()


def filtering_at(min_teacher_iou: float, judged: Sequence[Judged]) -> Filtering:
    """Precision and recall of dropping what does not reach `min_teacher_iou`, of at least one
    sentence."""
    dropped = [one for one in judged if one.teacher_iou < min_teacher_iou]
    bad = sum(one.annotation_iou < BAD_BELOW for one in judged)
    caught = sum(one.annotation_iou < BAD_BELOW for one in dropped)
    return Filtering(
        min_teacher_iou,
        len(dropped) / len(judged),
        caught / len(dropped) if dropped else None,
        caught / bad if bad else None,
    )


def paired(annotations: Path, truth: Path) -> dict[str, Annotated]:
    """Example id -> annotation and truth, of the sentences of two files in the same order."""
    found = {}
    for example, true in zip(_examples(annotations), _examples(truth), strict=False):
        assert (example.video_path, example.query) == (true.video_path, true.query)
        found[example.example_id] = Annotated(example.span, true.span)
    return found


def _examples(file: Path) -> list[GroundingExample]:
    return [e for e in read_timelens(file, "train") if isinstance(e, GroundingExample)]
