"""Spans: the temporal IoU, and an answer in the words that the default prompt asks for."""

from __future__ import annotations

from opd_core.types import Span


def temporal_iou(a: Span, b: Span) -> float:
    """Intersection over union of two spans, in [0, 1]; 0 where they only touch."""
    intersection = min(a.end, b.end) - max(a.start, b.start)
    if intersection <= 0.0:
        return 0.0
    return intersection / (max(a.end, b.end) - min(a.start, b.start))


def round_span(span: Span) -> Span:
    """Rounds both ends to whole seconds, halves to the even one as TimeLens does; may become empty.

    >>> round_span(Span(77.0, 92.5))
    Span(start=77.0, end=92.0)
    """
    return Span(float(round(span.start)), float(round(span.end)))


def answer_iou(predicted: Span | None, *truths: Span) -> float:
    """IoU as rewards count it: an answer without a span counts 0.

    Where a sentence is true several times, the span that the answer fits best counts.
    """
    return 0.0 if predicted is None else max(temporal_iou(predicted, truth) for truth in truths)


def format_answer(span: Span) -> str:
    """The answer as the prompt asks for it: `The event happens in 3.0 - 7.5 seconds`."""
    return f"The event happens in {span.start:.1f} - {span.end:.1f} seconds"
