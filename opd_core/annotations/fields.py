"""What every annotation reader asks of a value: is it text, an object, a path, a span?

Files come from anywhere, so nothing is believed and nothing is repaired: a value that is not what
it should be is a `BadAnnotationError`, whose text is the reason that the user gets to see.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from opd_core.annotations.video_names import NamedPath
from opd_core.types import Span

END_TOLERANCE_SECONDS = 0.5
"""Durations are rounded in the wild: a span may end this much after its video, and stays as is."""


_NO_TEXT = re.compile("[\ud800-\udfff\0]")


class BadAnnotationError(Exception):
    """The reason, one sentence."""


class BadSpanError(BadAnnotationError):
    """A span that is none of its video's."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        """In two or three words, by which such spans are counted."""


def parse_json(data: bytes, what: str = "the line") -> Any:
    """The value of UTF-8 JSON, with or without a byte order mark."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise BadAnnotationError(f"{what} is not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise BadAnnotationError(f"{what} is not JSON: {error.msg}") from None
    except (ValueError, RecursionError):
        # a number of more than 4,300 digits, or thousands of nested brackets
        raise BadAnnotationError(f"{what} is JSON beyond any annotation") from None


def as_object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadAnnotationError(f"{what} is not a JSON object")
    return value


def as_text(value: Any, what: str) -> str:
    """Stripped, not empty, and encodable."""
    if not isinstance(value, str):
        raise BadAnnotationError(f"{what} is not text")
    text: str = value.strip()
    if not text:
        raise BadAnnotationError(f"{what} is empty")
    if _NO_TEXT.search(text):
        raise BadAnnotationError(f"{what} holds characters that are no text")
    return text


@lru_cache(maxsize=1024)  # all sentences of a video ask
def relative_path(name: str) -> str:
    """A file below the folder of videos, `/` between its parts. Raises where it leads out."""
    path = NamedPath.of(name)
    if path.is_absolute or ".." in path.parts:
        raise BadAnnotationError(f"{name!r} leads out of the videos folder; make it relative")
    return "/".join(path.parts) if path.is_windows else name


def check_span(span: Span, duration: float) -> Span:
    """The span itself. Raises `BadSpanError` where it is reversed, empty, negative, or ends after
    its video."""
    start, end = span
    if end <= start:
        kind = "reversed" if end < start else "empty"
        raise BadSpanError(
            f"{kind} span",
            f"the span {start:g} - {end:g} s is {kind}: it ends at {end:g} s, not after its start "
            f"at {start:g} s",
        )
    outside = f"lies outside of the video's {duration:g} s"
    if start < 0:
        raise BadSpanError(
            "negative span", f"the span {start:g} - {end:g} s is negative: it {outside}"
        )
    if end > duration + END_TOLERANCE_SECONDS:
        raise BadSpanError("span outside of its video", f"the span {start:g} - {end:g} s {outside}")
    return span
