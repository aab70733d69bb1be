"""Times as people write them: seconds, seconds as text, clocks, and two of them as a span.

What can be read in one way is read; what can be meant in two (`1,500`), or is no number of seconds
(milliseconds, frames, percent), is a `BadAnnotationError` that shows the text.
"""

from __future__ import annotations

import math
import re
from datetime import timedelta
from decimal import Decimal
from typing import Any

from opd_core.annotations.fields import BadAnnotationError

_SECOND = r"\s*(?:s|secs?|seconds?)\b\.?"
_NUMBER = re.compile(
    rf"([+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:e[+-]?\d+)?)(?:{_SECOND})?", re.ASCII | re.IGNORECASE
)
_THOUSANDS_OR_DECIMALS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}", re.ASCII)
_CLOCK = re.compile(r"([+-]?)(?:(\d+):)?(\d+):(\d{1,2}(?:[.,]\d+)?)", re.ASCII)
_WORDS = re.compile(
    r"(?:PT)?(?:(\d+)\s*h(?:rs?|ours?)?)?\s*(?:(\d+)\s*m(?:ins?|inutes?)?)?"
    r"\s*(?:(\d+(?:\.\d+)?)\s*s(?:ecs?|econds?)?)?",
    re.ASCII | re.IGNORECASE,
)
_NOT_FINITE = {"nan", "inf", "infinity"}

_NO_QUOTES = str.maketrans("", "", "'\"")
_TIME = r"[+-]?(?:(?:\d+:)?\d+:\d{1,2}(?:[.,]\d+)?|\d+(?:\.\d+)?)(?![\d:])"
_COMMA_TIME = r"[+-]?\d+,\d+(?![\d:])"
_DASH = r"-{1,3}>?|→|–|—|~|\.\.|to\b|until\b"


def _pairs(time: str, joins: str) -> re.Pattern[str]:
    return re.compile(
        rf"(?<![\w.:])({time})(?:{_SECOND})?\s*(?:{joins})\s*({time})(?:{_SECOND})?",
        re.ASCII | re.IGNORECASE,
    )


_PAIR = _pairs(_TIME, rf"{_DASH}|and\b|,|;")
_COMMA_PAIR = _pairs(_COMMA_TIME, rf"{_DASH}|and\b|;")
_OTHER_UNIT = re.compile(
    r"\s*(?:%|ms\b|milli|mins?\b|minutes?\b|h\b|hours?\b|percent|frames?\b)", re.IGNORECASE
)
_FRAMES_BEFORE = re.compile(r"\bframes?\s*$", re.IGNORECASE)
_BETWEEN = re.compile(r"[\s,;|()\[\]&.]*(?:and)?[\s,;|()\[\]&.]*", re.IGNORECASE)


def seconds(value: Any, what: str) -> float:
    """A number; or text: `1.5`, `1,5`, `3 s`, `00:01`, `1:02.5`, `00:00:01,500`, `1m30s`.

    Raises `BadAnnotationError` for anything else, and for what is not finite.
    """
    if isinstance(value, str):
        value = _of_text(value.strip(), what)
    elif isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise BadAnnotationError(f"{what} is not a number")
    try:
        number = float(value)
    except (OverflowError, ValueError):
        number = math.inf
    if not math.isfinite(number):
        raise BadAnnotationError(f"{what} is not a finite number")
    return number


def is_time(text: str) -> bool:
    try:
        seconds(text, "it")
    except BadAnnotationError:
        return False
    return True


def _of_text(text: str, what: str) -> float:
    if _THOUSANDS_OR_DECIMALS.fullmatch(text):
        point = text.replace(",", ".")
        raise BadAnnotationError(
            f"{what} is {text!r}, which may be {point} or {text.replace(',', '')}; "
            "write it with a point or without the comma"
        )
    if match := _NUMBER.fullmatch(text):
        return float(match.group(1).replace(",", "."))
    if match := _CLOCK.fullmatch(text):
        return _of_clock(match, text, what)
    if (match := _WORDS.fullmatch(text)) and any(match.groups()):
        hours, minutes, rest = (float(part or 0) for part in match.groups())
        return hours * 3600 + minutes * 60 + rest
    if text.lstrip("+-").casefold() in _NOT_FINITE:
        return math.nan
    shown = text if len(text) <= 40 else text[:37] + "..."
    raise BadAnnotationError(
        f"{what} is not a number of seconds ({shown!r}); write 62.5, '62.5 s' or '1:02.5'"
    )


def _of_clock(match: re.Match[str], text: str, what: str) -> float:
    sign, hours, minutes, rest = match.groups()
    seconds_part = float(rest.replace(",", "."))
    if seconds_part >= 60 or (hours is not None and int(minutes[:9]) >= 60):
        raise BadAnnotationError(f"{what} is {text!r}, which is no time of a clock")
    total = float(hours or 0) * 3600 + float(minutes) * 60 + seconds_part
    return -total if sign == "-" else total


def pairs_of_text(text: str) -> list[tuple[str, str]]:
    """The pairs of a text that consists of pairs of times: `1.0 to 2.5`, `(0:01 - 0:03), 5-6`.

    Empty where the text holds anything else.
    """
    if text.startswith(("[", "(")):  # a list as Python or numpy prints it
        text = text.translate(_NO_QUOTES)
    if len(words := text.strip("[]() ").split()) == 2 and all(is_time(word) for word in words):
        return [(words[0], words[1])]
    for pattern in (_PAIR, _COMMA_PAIR):
        if (pairs := pattern.findall(text)) and all(
            _BETWEEN.fullmatch(rest) for rest in pattern.sub("\0", text).split("\0")
        ):
            return pairs
    return []


def first_pair(text: str) -> tuple[str, str] | None:
    """The first pair of times in a sentence, whatever their order and sign."""
    match = _PAIR.search(text)
    return (match.group(1), match.group(2)) if match else None


def has_other_units(text: str) -> bool:
    """Whether the first pair in a sentence is said to be of frames, minutes, percent, ..."""
    match = _PAIR.search(text)
    return match is not None and bool(
        _OTHER_UNIT.match(text, match.end()) or _FRAMES_BEFORE.search(text[: match.start()])
    )
