"""Annotation files into examples: TimeLens-100K JSONL, line by line, and never a crash.

One bad line of a hundred thousand must not end an import, and must not be lost either: it becomes
a `QuarantinedItem` with its place and what is wrong with it. Nothing is repaired: a clipped or
swapped span would be an annotation that nobody made.

A line: `{"source", "video_path", "duration", "events": [{"query", "span": [[start, end]]}]}`.
An event with several spans is true several times: one example, with all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from opd_core.annotation_fields import (
    BadAnnotationError,
    as_number,
    as_object,
    check_span,
    get_duration,
    get_list,
    get_text,
    parse_json,
    relative_path,
)
from opd_core.control_tokens import control_fault
from opd_core.faults import ANNOTATION
from opd_core.types import (
    GroundingExample,
    QuarantinedItem,
    Span,
    VideoOPDError,
    make_example_id,
)


def read_timelens(path: Path, split: str) -> Iterator[GroundingExample | QuarantinedItem]:
    """One example an event, in the file's order; what makes no example comes as quarantined.

    `item_id` is `file:line`, or `file:line#event` (events from 0). An annotation that is there
    twice is an example once. Raises `VideoOPDError` at once where the file cannot be opened.
    """
    path = Path(path)
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise VideoOPDError(
            f"there is no annotation file {path}; correct data.{split}, or make the file first"
        ) from None
    except OSError as error:
        raise VideoOPDError(
            f"{path} cannot be read ({error.strerror}); point data.{split} at a JSONL file"
        ) from None
    return _read(file, path.name, split)


def _read(file: BinaryIO, name: str, split: str) -> Iterator[GroundingExample | QuarantinedItem]:
    first_seen: dict[str, str] = {}
    with file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{name}:{number}"
            video_path = None
            try:
                record = as_object(parse_json(line), "the line")
                video_path = relative_path(record, "video_path")
                source = get_text(record, "source")
                duration = get_duration(record)
                events = get_list(record, "events")
            except BadAnnotationError as error:
                yield _quarantined(place, video_path, error)
                continue
            for index, event in enumerate(events):
                event_place = f"{place}#{index}"
                try:
                    example = _example(event, video_path, duration, source, split)
                    if example.example_id in first_seen:
                        raise BadAnnotationError(
                            f"is the same annotation as {first_seen[example.example_id]}"
                        )
                except BadAnnotationError as error:
                    yield _quarantined(event_place, video_path, error)
                    continue
                first_seen[example.example_id] = event_place
                yield example


def _example(
    event: Any, video_path: str, duration: float, source: str, split: str
) -> GroundingExample:
    event = as_object(event, "the event")
    query = get_text(event, "query")
    if fault := control_fault(query):
        raise BadAnnotationError(fault)
    span, *others = _spans(event, duration)
    return GroundingExample(
        example_id=make_example_id(video_path, query, span, *others),
        video_path=video_path,
        duration=duration,
        query=query,
        span=span,
        source=source,
        split=split,
        other_spans=tuple(tuple(other) for other in others),
    )


def _spans(event: dict[str, Any], duration: float) -> list[Span]:
    """One or more, in the file's order, each once."""
    spans = []
    for pair in get_list(event, "span"):
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadAnnotationError("'span' is not of the form [[start, end]]")
        start, end = (as_number(value, "a span's end") for value in pair)
        spans.append(check_span(Span(start, end), duration))
    return list(dict.fromkeys(spans))


def _quarantined(place: str, video_path: str | None, error: Exception) -> QuarantinedItem:
    return QuarantinedItem(
        item_id=place,
        stage="import",
        video_path=video_path,
        reason=str(error),
        policy_version=None,
        kind=ANNOTATION,
    )
