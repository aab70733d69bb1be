"""Numbers as pages show them, as filters of templates: `{{ iou | number }}`; absent is a dash."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

ABSENT_TEXT = "–"


def number(value: float | None, style: str = ".3f") -> str:
    """
    >>> number(0.5), number(None), number(1234, ",")
    ('0.500', '–', '1,234')
    """
    return ABSENT_TEXT if value is None else f"{value:{style}}"


def seconds(value: float | None) -> str:
    """
    >>> seconds(0.25), seconds(93.0), seconds(7500.0)
    ('0.25 s', '1:33 min', '2:05 h')
    """
    if value is None:
        return ABSENT_TEXT
    if value < 60:
        return f"{value:.3g} s"
    large, small, unit = (value, 60, "min") if value < 3600 else (value / 60, 60, "h")
    return f"{int(large // small)}:{int(large % small):02d} {unit}"


def moment(value: str | datetime) -> str:
    """
    >>> moment("2026-11-27T13:35:29.474373+00:00")
    '2026-11-27 13:35 UTC'
    """
    at = datetime.fromisoformat(value) if isinstance(value, str) else value
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


FILTERS: dict[str, Callable[..., str]] = {"number": number, "seconds": seconds, "moment": moment}
