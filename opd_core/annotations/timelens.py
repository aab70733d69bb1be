"""Annotation files into examples: TimeLens-100K JSONL, line by line, and never a crash.

One bad line of a hundred thousand must not end an import, and must not be lost either: it becomes
a `QuarantinedItem` with its place and what is wrong with it. Nothing is repaired: a clipped or
swapped span would be an annotation that nobody made.

A line: `{"source", "video_path", "duration", "events": [{"query", "span": [[start, end]]}]}`. It is
read as `videoopd import` reads it (`formats/rows.py`); a run needs the source and the duration too.
An event with several spans is true several times: one example, with all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from opd_core.annotations.control_tokens import control_fault
from opd_core.annotations.fields import BadAnnotationError, check_span, relative_path
from opd_core.annotations.formats.found import Annotated, Found, LeftOut, OfVideo
from opd_core.annotations.formats.opening import check_readable
from opd_core.annotations.formats.rows import read_rows
from opd_core.faults import ANNOTATION
from opd_core.types import GroundingExample, QuarantinedItem, make_example_id


def read_timelens(path: Path, split: str) -> Iterator[GroundingExample | QuarantinedItem]:
    """One example an event, in the file's order; what makes no example comes as quarantined.

    `item_id` is `file:line`, or `file:line#event` (events from 0). An annotation that is there
    twice is an example once. Raises `VideoOPDError` at once where the file cannot be opened.
    """
    path = Path(path)
    check_readable(path, fix=f"correct data.{split}, or make the file first")
    return _examples(read_rows(path, _check_for_a_run), split)


def _check_for_a_run(of: OfVideo) -> None:
    relative_path(of.video)
    if of.source is None:
        raise BadAnnotationError("the key 'source' is missing")
    if of.duration is None:
        raise BadAnnotationError("the key 'duration' is missing")
    if of.duration <= 0:
        raise BadAnnotationError(f"'duration' is {of.duration:g} s")


def _examples(
    annotations: Iterator[Found], split: str
) -> Iterator[GroundingExample | QuarantinedItem]:
    first_seen: dict[str, str] = {}
    for annotation in annotations:
        if isinstance(annotation, LeftOut):
            yield _quarantined(annotation, annotation.reason)
            continue
        try:
            example = _example(annotation, split)
            if example.example_id in first_seen:
                raise BadAnnotationError(
                    f"is the same annotation as {first_seen[example.example_id]}"
                )
        except BadAnnotationError as error:
            yield _quarantined(annotation, str(error))
            continue
        first_seen[example.example_id] = annotation.place
        yield example


def _example(annotation: Annotated, split: str) -> GroundingExample:
    assert annotation.source is not None and annotation.duration is not None  # `_check_for_a_run`
    video_path = relative_path(annotation.video)
    if fault := control_fault(annotation.query):
        raise BadAnnotationError(fault)
    span, *others = (check_span(span, annotation.duration) for span in annotation.spans)
    return GroundingExample(
        example_id=make_example_id(video_path, annotation.query, span, *others),
        video_path=video_path,
        duration=annotation.duration,
        query=annotation.query,
        span=span,
        source=annotation.source,
        split=split,
        other_spans=tuple(tuple(other) for other in others),
    )


def _quarantined(annotation: Found, reason: str) -> QuarantinedItem:
    return QuarantinedItem(
        item_id=annotation.place,
        stage="import",
        video_path=annotation.video,
        reason=reason,
        policy_version=None,
        kind=ANNOTATION,
    )
