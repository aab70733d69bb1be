"""What a reader finds in a file: an annotation, or a place where there should be one and why not.

Readers never raise for what is in a file, only (`VideoOPDError`) for a file that cannot be opened.
They believe nothing about the video: its path is looked for and its length measured later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from opd_core.annotation_fields import BadAnnotationError, as_number, as_text, parse_json
from opd_core.types import Span, VideoOPDError


@dataclass(frozen=True, slots=True)
class Annotated:
    """One sentence about one video, as a file has it."""

    place: str
    """`file:line`, or `file:line#event` (events from 0), or `file:key#event`."""
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
Reader = Callable[[Path], Iterator[Found]]


def attempt(place: str, video: Any, build: Callable[[], Annotated]) -> Found:
    """What `build` gives, or the reason why it gives nothing."""
    try:
        return build()
    except BadAnnotationError as error:
        named = video if isinstance(video, str) and video.isprintable() else None
        return LeftOut(place, named, str(error))


def annotated(
    place: str,
    video: Any,
    query: Any,
    spans: Any,
    source: Any = None,
    duration: Any = None,
) -> Annotated:
    """Checks the types of everything; spans against the video come later."""
    return Annotated(
        place,
        as_text(video, "the video's name"),
        as_text(query, "the query"),
        spans_of(spans),
        None if source is None else as_text(source, "'source'"),
        None if duration is None else as_number(duration, "'duration'"),
    )


def spans_of(value: Any) -> tuple[Span, ...]:
    """`[start, end]` or `[[start, end], ...]`."""
    pairs = value if isinstance(value, list) else None
    if not pairs:
        raise BadAnnotationError("there is no span of the form [start, end]")
    if not isinstance(pairs[0], list):
        pairs = [pairs]
    spans = []
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadAnnotationError("a span is not of the form [start, end]")
        start, end = (as_number(end, "a span's end") for end in pair)
        spans.append(Span(start, end))
    return tuple(dict.fromkeys(spans))


def paired(left: Any, right: Any, names: tuple[str, str]) -> Sequence[tuple[Any, Any]]:
    """Two lists that run in parallel; raises where they do not."""
    for value, name in zip((left, right), names, strict=True):
        if not isinstance(value, list):
            raise BadAnnotationError(f"{name!r} is not a list")
    if len(left) != len(right):
        raise BadAnnotationError(
            f"{names[0]!r} has {len(left)} entries and {names[1]!r} has {len(right)}"
        )
    if not left:
        raise BadAnnotationError(f"{names[0]!r} is empty")
    return list(zip(left, right, strict=True))


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file, for reading bytes. Raises `VideoOPDError` where it cannot be opened."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise VideoOPDError(f"there is no annotation file {path}; correct its path") from None
    except OSError as error:
        raise VideoOPDError(
            f"{path} cannot be read ({error.strerror}); give an annotation file"
        ) from None
    with file:
        yield file


def lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """(`file:line`, its bytes) of every line that is not blank."""
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path.name}:{number}", line


def json_of_videos(path: Path) -> Iterator[tuple[str, str, Any]]:
    """(place, key, value) of a file that is one JSON object, a video a key.

    Raises `BadAnnotationError` for a file that is anything else.
    """
    with opened(path) as file:
        content = parse_json(file.read(), "the file")
    if not isinstance(content, dict):
        raise BadAnnotationError("the file is not one JSON object with a video a key")
    for key, value in content.items():
        yield f"{path.name}:{key}", key, value
