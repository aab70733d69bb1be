"""Formats with one JSON object a line: TimeLens-100K, QVHighlights, and a plain one.

TimeLens-100K  {"source", "video_path", "duration", "events": [{"query", "span": [[s, e]]}]}
QVHighlights   {"qid", "query", "duration", "vid", "relevant_windows": [[s, e], ...]}
plain          {"video", "start", "end", "query"}, or "span": [[s, e], ...] for start and end
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from opd_core.annotation_fields import BadAnnotationError, as_object, get, get_list, parse_json
from opd_core.formats.found import Annotated, Found, LeftOut, annotated, attempt, lines


def read_timelens_100k(path: Path) -> Iterator[Found]:
    for place, line in lines(path):
        video = None
        try:
            record = as_object(parse_json(line), "the line")
            video = record.get("video_path")
            events = get_list(record, "events")
        except BadAnnotationError as error:
            yield LeftOut(place, video if isinstance(video, str) else None, str(error))
            continue
        for index, event in enumerate(events):
            at = f"{place}#{index}"
            yield attempt(at, video, partial(_event, at, record, event))


def _event(place: str, record: dict[str, Any], event: Any) -> Annotated:
    event = as_object(event, "the event")
    return annotated(
        place,
        get(record, "video_path"),
        get(event, "query"),
        get(event, "span"),
        record.get("source"),
        record.get("duration"),
    )


def read_qvhighlights(path: Path) -> Iterator[Found]:
    return _read(path, "vid", _highlight)


def _highlight(place: str, record: dict[str, Any]) -> Annotated:
    return annotated(
        place,
        get(record, "vid"),
        get(record, "query"),
        get(record, "relevant_windows"),
        duration=record.get("duration"),
    )


def read_plain_jsonl(path: Path) -> Iterator[Found]:
    return _read(path, "video", _plain)


def _plain(place: str, record: dict[str, Any]) -> Annotated:
    spans = record["span"] if "span" in record else [get(record, "start"), get(record, "end")]
    return annotated(
        place,
        get(record, "video"),
        get(record, "query"),
        spans,
        record.get("source"),
        record.get("duration"),
    )


def _read(
    path: Path, video: str, build: Callable[[str, dict[str, Any]], Annotated]
) -> Iterator[Found]:
    for place, line in lines(path):
        try:
            record = as_object(parse_json(line), "the line")
        except BadAnnotationError as error:
            yield LeftOut(place, None, str(error))
            continue
        yield attempt(place, record.get(video), partial(build, place, record))
