"""Reading `{"start": 12.5, "end": 17.8}` as models write it.

Strict JSON first; else an object without nesting is read leniently: single quotes, names without
quotes, a comma too many. Times may be text (`"00:12.5"`, `"12.5 s"`), and the two keys may be
called `start_time`, `endSec` and the like.
"""

from __future__ import annotations

import json
import math
import re

from opd_core.spans.answer_reader import after_thoughts, parse_moment
from opd_core.types import Span

LONGEST_OBJECT = 4096
"""Characters; a longer object is no answer, those inside it may be."""

_OPEN = re.compile(r"\{(?=\s{0,20}[\w\"'“”‘’\\])")
_FLAT = re.compile(r"\{([^{}]*+)\}")
_ENTRY = re.compile(
    r"""(?<![\w-])\\?["']?([A-Za-z_][\w-]*+(?:\ [\w-]++)?)\\?["']?\s{0,9}[:=]\s{0,9}"""
    r"""(?:\\?["']([^"'\\]*+)|([^,;"'\n]++(?:,\d{1,2}(?=\s{0,9}(?:[,;\n]|$)))?))"""
)
_SIGNS = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "：": ":", "，": ","})
_COMMENT = re.compile(r"/\*[^*]{0,80}\*/")
_DECIMAL_COMMA = re.compile(r"(?<![\d.,])(\d+),(\d{1,2})(?![\d.,])", re.ASCII)
_WHAT = "time|times|timestamp|sec|secs|second|seconds|ts|at|s"
_STARTS = re.compile(
    rf"(?:{_WHAT}|t|event|moment|segment)?(?:start|starts|starting|begin|begins|beginning|from|onset)(?:{_WHAT})?"
)
_ENDS = re.compile(
    rf"(?:{_WHAT}|t|event|moment|segment)?(?:end|ends|ending|finish|stop|to|until|offset)(?:{_WHAT})?"
)


def parse_json_span(text: str) -> Span | None:
    """The span of the first JSON object with a start and an end, whatever stands around it."""
    text = after_thoughts(text)
    decoder = json.JSONDecoder()
    for brace in _OPEN.finditer(text):
        part = text[brace.start() : brace.start() + LONGEST_OBJECT]
        try:
            entries, _ = decoder.raw_decode(part)
        except (ValueError, RecursionError):
            entries = _lenient(part)
        start, end = _value(entries, _STARTS), _value(entries, _ENDS)
        if start is not None and end is not None:
            return Span(start, end) if 0 <= start < end else None
    return None


def _lenient(part: str) -> dict[str, object]:
    flat = _FLAT.match(part)
    entries = _ENTRY.findall(_COMMENT.sub("", flat[1]).translate(_SIGNS)) if flat else []
    return {key: quoted or bare for key, quoted, bare in entries}


def _value(entries: dict[str, object], names: re.Pattern[str]) -> float | None:
    """Seconds of the first entry that is so called; None where it holds no time."""
    for key, value in entries.items():
        if names.fullmatch(re.sub(r"[^a-z]", "", key.lower())):
            return _seconds(value)
    return None


def _seconds(value: object) -> float | None:
    if isinstance(value, str):
        return parse_moment(_DECIMAL_COMMA.sub(r"\1.\2", value).lstrip(" ~"))  # one time, so no two
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
