"""What every annotation reader asks of a value: is it text, a number, a list, a span?

Files come from anywhere, so nothing is believed and nothing is repaired: a value that is not what
it should be is a `BadAnnotationError`, whose text is the reason that the user gets to see.
"""

from __future__ import annotations

import json
import math
from pathlib import PurePosixPath
from typing import Any

from opd_core.types import Span

END_TOLERANCE_SECONDS = 0.5
"""Durations are rounded in the wild: a span may end this much after its video, and stays as is."""


class BadAnnotationError(Exception):
    """The reason, one sentence."""


def parse_json(data: bytes, what: str = "the line") -> Any:
    """The value of UTF-8 JSON, with or without a byte order mark."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise BadAnnotationError(f"{what} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise BadAnnotationError(f"{what} is not JSON: {error.msg}") from None
    except (ValueError, RecursionError):
        # a number of more than 4,300 digits, or thousands of nested brackets
        raise BadAnnotationError(f"{what} is JSON beyond any annotation") from None


def as_object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadAnnotationError(f"{what} is not a JSON object")
    return value


def get(record: dict[str, Any], key: str) -> Any:
    if key not in record:
        raise BadAnnotationError(f"the key {key!r} is missing")
    return record[key]


def get_list(record: dict[str, Any], key: str) -> list[Any]:
    value = get(record, key)
    if not isinstance(value, list):
        raise BadAnnotationError(f"{key!r} is not a list")
    if not value:
        raise BadAnnotationError(f"{key!r} is empty")
    return value


def get_text(record: dict[str, Any], key: str) -> str:
    return as_text(get(record, key), repr(key))


def as_text(value: Any, what: str) -> str:
    """Stripped, not empty, and encodable."""
    if not isinstance(value, str):
        raise BadAnnotationError(f"{what} is not text")
    value = value.strip()
    if not value:
        raise BadAnnotationError(f"{what} is empty")
    if any("\ud800" <= character <= "\udfff" for character in value) or "\0" in value:
        raise BadAnnotationError(f"{what} holds characters that are no text")
    return value


def relative_path(record: dict[str, Any], key: str) -> str:
    value = get_text(record, key)
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts:
        raise BadAnnotationError(f"{key!r} leads out of the videos folder; make it relative")
    return value


def get_duration(record: dict[str, Any]) -> float:
    duration = as_number(get(record, "duration"), "'duration'")
    if duration <= 0:
        raise BadAnnotationError(f"'duration' is {duration:g} s")
    return duration


def as_number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadAnnotationError(f"{what} is not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BadAnnotationError(f"{what} is not a finite number")
    return number


def check_span(span: Span, duration: float) -> Span:
    """The span itself. Raises where it is empty, reversed, or not inside its video."""
    start, end = span
    if end <= start:
        raise BadAnnotationError(f"the span ends at {end:g} s, not after its start at {start:g} s")
    if start < 0 or end > duration + END_TOLERANCE_SECONDS:
        raise BadAnnotationError(
            f"the span {start:g} - {end:g} s lies outside of the video's {duration:g} s"
        )
    return span
