"""What a reader finds in a file: an annotation, or a place where there should be one and why not.

Readers never raise for what is in a file, only (`VideoOPDError`) for a file that cannot be opened.
They believe nothing about the video: its path is looked for and its length measured later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opd_core.annotations.fields import BadAnnotationError, as_text
from opd_core.annotations.times import seconds
from opd_core.types import Span


@dataclass(frozen=True, slots=True)
class OfVideo:
    """What holds for all sentences of a row."""

    video: str
    """What the file calls it: a path, a file name, or only an id."""
    source: str | None = None
    duration: float | None = None
    """Seconds, as annotated."""


@dataclass(frozen=True, slots=True)
class Annotated:
    """One sentence about one video, as a file has it."""

    place: str
    """`file:line`, or `file:line#event` (events from 0), or `file:key#event`; a row's number, from
    1, stands for the line in a JSON array or a parquet file."""
    video: str
    """What the file calls it: a path, a file name, or only an id."""
    query: str
    spans: tuple[Span, ...]
    """At least one; more where the sentence is true several times (QVHighlights)."""
    source: str | None = None
    duration: float | None = None
    """Seconds, as annotated."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An annotation that is none."""

    place: str
    video: str | None
    reason: str


Found = Annotated | LeftOut


@dataclass(frozen=True, slots=True)
class Format:
    """Files that `videoopd import` understands."""

    about: str
    """What such a file is, in a few words."""
    read: Callable[[Path], Iterator[Found]]


def attempt(place: str, video: str | None, build: Callable[[], Annotated]) -> Found:
    """What `build` gives, or the reason why it gives nothing."""
    try:
        return build()
    except BadAnnotationError as error:
        reason = str(error)
    except RecursionError:
        reason = "the row is nested beyond any annotation"
    return left_out(place, video, reason)


def left_out(place: str, video: str | None, reason: object) -> LeftOut:
    named = video if video is not None and video.isprintable() else None
    return LeftOut(place, named, str(reason))


def of_video(video: Any, source: Any = None, duration: Any = None) -> OfVideo:
    """Checks the types of everything. A number as a video's name is an id."""
    if isinstance(video, int) and not isinstance(video, bool):
        video = f"{video:d}" if abs(video) < 10**30 else ""
    return OfVideo(
        as_text(video, "the video's name").removeprefix("file://"),
        None if source is None else as_text(source, "'source'"),
        None if duration is None else seconds(duration, "'duration'"),
    )


def annotated(place: str, of: OfVideo, query: Any, spans: tuple[Span, ...]) -> Annotated:
    """Spans are held against the video later."""
    return Annotated(place, of.video, as_text(query, "the query"), spans, of.source, of.duration)
