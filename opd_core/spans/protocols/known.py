"""The protocols by name, and what all of them make of an answer.

Each answer of the eval split is judged by every protocol that is installed. Two spans and IoUs have
columns of their own in the tables; what any other protocol reads and gives is in `judgements`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opd_core.registry import Registry
from opd_core.spans.protocols.protocol import Protocol
from opd_core.types import Judgement, Span

_HERE = "opd_core.spans.protocols"
PROTOCOLS = Registry(
    "videoopd.protocols",
    Protocol,
    {name: f"{_HERE}.{name}:PROTOCOL" for name in ("strict", "timelens", "qvhighlights")},
)

FIELDS = {
    "strict": ("predicted_span", "iou"),
    "timelens": ("timelens_span", "timelens_iou"),
    "qvhighlights": ("predicted_span", "iou"),
}
"""Span and IoU of those that have fields of their own in `types.Evaluation`."""


def judgement(name: str, text: str, own: Span | None, truth: Sequence[Span]) -> Judgement:
    """What a protocol makes of an answer; `own` is what the prompt's reader has read, `truth` the
    annotated spans."""
    protocol = PROTOCOLS[name]
    span = protocol.read(text, own)
    start, end = span or (None, None)
    return Judgement(name, start, end, protocol.iou(span, truth))


def judged(text: str, own: Span | None, truth: Sequence[Span]) -> dict[str, Any]:
    """What each protocol makes of an answer, by the fields of `types.Evaluation`.

    >>> judged("3 - 7 s", Span(3.0, 7.0), [Span(3.0, 7.0)])["timelens_iou"]
    1.0
    """
    fields: dict[str, Any] = {}
    others: list[Judgement] = []
    for name in PROTOCOLS:
        made = judgement(name, text, own, truth)
        if name in FIELDS:
            span, iou = FIELDS[name]
            fields |= {span: made.span, iou: made.iou}
        else:
            others.append(made)
    return {**fields, "judgements": tuple(others) or None}
