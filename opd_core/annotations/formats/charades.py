"""Charades-STA: `AO8RW 0.0 6.9##a person is putting a book on a shelf.`, a sentence a line."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from opd_core.annotations.fields import BadAnnotationError
from opd_core.annotations.formats.containers import lines
from opd_core.annotations.formats.found import (
    Annotated,
    Format,
    Found,
    LeftOut,
    annotated,
    attempt,
    of_video,
)
from opd_core.annotations.times import seconds
from opd_core.types import Span


def read_charades_sta(path: Path) -> Iterator[Found]:
    for line in lines(path):
        if isinstance(line, LeftOut):
            yield line
        else:
            yield attempt(line[0], None, partial(_annotated, *line))


def _annotated(place: str, line: bytes) -> Annotated:
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadAnnotationError("the line is not UTF-8; save the file as UTF-8") from None
    head, separator, query = text.partition("##")
    words = head.rsplit(maxsplit=2)
    if not separator or len(words) != 3:
        raise BadAnnotationError("the line is not of the form `VIDEO start end##sentence`")
    video, start, end = words
    span = Span(seconds(start, "'start'"), seconds(end, "'end'"))
    return annotated(place, of_video(video), query, (span,))


CHARADES_STA = Format("lines of `VIDEO START END##sentence`", read_charades_sta)
