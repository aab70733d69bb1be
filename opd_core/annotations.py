"""Annotation files into examples: TimeLens-100K JSONL, line by line, and never a crash.

One bad line of a hundred thousand must not end an import, and must not be lost either: it becomes
a `QuarantinedItem` with its place and what is wrong with it. Nothing is repaired: a clipped or
swapped span would be an annotation that nobody made.

A line: `{"source", "video_path", "duration", "events": [{"query", "span": [[start, end]]}]}`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from opd_core.types import (
    GroundingExample,
    QuarantinedItem,
    Span,
    VideoOPDError,
    make_example_id,
)

END_TOLERANCE_SECONDS = 0.5
"""Durations are rounded in the wild: a span may end this much after its video, and stays as is."""


class _BadAnnotationError(Exception):
    """The reason, one sentence."""


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
                record = _object(_parse(line), "the line")
                video_path = _video_path(record)
                source = _text(record, "source")
                duration = _duration(record)
                events = _list(record, "events")
            except _BadAnnotationError as error:
                yield _quarantined(place, video_path, error)
                continue
            for index, event in enumerate(events):
                event_place = f"{place}#{index}"
                try:
                    example = _example(event, video_path, duration, source, split)
                    if example.example_id in first_seen:
                        raise _BadAnnotationError(
                            f"is the same annotation as {first_seen[example.example_id]}"
                        )
                except _BadAnnotationError as error:
                    yield _quarantined(event_place, video_path, error)
                    continue
                first_seen[example.example_id] = event_place
                yield example


def _example(
    event: Any, video_path: str, duration: float, source: str, split: str
) -> GroundingExample:
    event = _object(event, "the event")
    query = _text(event, "query")
    span = _span(event, duration)
    return GroundingExample(
        example_id=make_example_id(video_path, query, span),
        video_path=video_path,
        duration=duration,
        query=query,
        span=span,
        source=source,
        split=split,
    )


def _span(event: dict[str, Any], duration: float) -> Span:
    spans = _list(event, "span")
    if len(spans) != 1:
        raise _BadAnnotationError(f"'span' holds {len(spans)} spans; exactly one is expected")
    pair = spans[0]
    if not isinstance(pair, list) or len(pair) != 2:
        raise _BadAnnotationError("'span' is not of the form [[start, end]]")
    start, end = (_number(value, "a span's end") for value in pair)
    if end <= start:
        raise _BadAnnotationError(f"the span ends at {end:g} s, not after its start at {start:g} s")
    if start < 0 or end > duration + END_TOLERANCE_SECONDS:
        raise _BadAnnotationError(
            f"the span {start:g} - {end:g} s lies outside of the video's {duration:g} s"
        )
    return Span(start, end)


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise _BadAnnotationError("the line is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _BadAnnotationError(f"the line is not JSON: {error.msg}") from None
    except (ValueError, RecursionError):
        # a number of more than 4,300 digits, or thousands of nested brackets
        raise _BadAnnotationError("the line is JSON beyond any annotation") from None


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _BadAnnotationError(f"{what} is not a JSON object")
    return value


def _get(record: dict[str, Any], key: str) -> Any:
    if key not in record:
        raise _BadAnnotationError(f"the key {key!r} is missing")
    return record[key]


def _list(record: dict[str, Any], key: str) -> list[Any]:
    value = _get(record, key)
    if not isinstance(value, list):
        raise _BadAnnotationError(f"{key!r} is not a list")
    if not value:
        raise _BadAnnotationError(f"{key!r} is empty")
    return value


def _text(record: dict[str, Any], key: str) -> str:
    value = _get(record, key)
    if not isinstance(value, str):
        raise _BadAnnotationError(f"{key!r} is not text")
    value = value.strip()
    if not value:
        raise _BadAnnotationError(f"{key!r} is empty")
    if any("\ud800" <= character <= "\udfff" for character in value) or "\0" in value:
        raise _BadAnnotationError(f"{key!r} holds characters that are no text")
    return value


def _video_path(record: dict[str, Any]) -> str:
    value = _text(record, "video_path")
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts:
        raise _BadAnnotationError("'video_path' leads out of the videos folder; make it relative")
    return value


def _duration(record: dict[str, Any]) -> float:
    duration = _number(_get(record, "duration"), "'duration'")
    if duration <= 0:
        raise _BadAnnotationError(f"'duration' is {duration:g} s")
    return duration


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _BadAnnotationError(f"{what} is not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _BadAnnotationError(f"{what} is not a finite number")
    return number


def _quarantined(place: str, video_path: str | None, error: Exception) -> QuarantinedItem:
    return QuarantinedItem(
        item_id=place,
        stage="import",
        video_path=video_path,
        reason=str(error),
        policy_version=None,
    )
