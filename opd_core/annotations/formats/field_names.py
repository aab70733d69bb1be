"""Under which names this field's data sets keep the same things, and a row seen through them.

Names are compared without case and punctuation: `start_time`, `startTime` and `Start Time` are one.
Earlier names of a table win. To read a new name, add it here.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from opd_core.annotations.fields import BadAnnotationError, parse_json

VIDEO = (
    "video_path", "video", "videos", "video_file", "file_name", "file", "path", "video_name", "vid",
    "video_id",
)  # fmt: skip
SENTENCE = (
    "query", "queries", "sentence", "sentences", "caption", "captions", "phrase", "description",
    "descriptions", "language_query", "text", "event",
)  # fmt: skip
QUESTION = ("question", "problem", "instruction")
"""These may hold an entire prompt, with the sentence in quotes."""
SPAN = ("span", "spans")
START = (
    "start", "start_time", "start_sec", "start_second", "start_seconds", "start_s", "begin",
    "begin_time", "t_start",
)  # fmt: skip
END = (
    "end", "end_time", "end_sec", "end_second", "end_seconds", "end_s", "stop", "stop_time",
    "t_end",
)  # fmt: skip
WINDOWS = (
    "timestamp", "timestamps", "relevant_windows", "relevant_window", "windows", "window",
    "segments", "segment", "moments", "moment", "intervals", "interval", "time_span", "time_range",
    "times", "time", "gt_spans", "gt_span", "gt_windows", "gt_times", "gt_time", "gt",
    "ground_truth", "target",
)  # fmt: skip
"""Spans, where there is neither a `span` nor a start and an end."""
ANSWER = ("solution", "answer", "response", "output", "completion")
"""Text that may name a span, or speak of something else."""
SOURCE = ("source", "data_source", "dataset", "dataset_name")
DURATION = (
    "duration", "video_duration", "duration_sec", "duration_seconds", "duration_s", "durations",
)  # fmt: skip
CUT = ("video_start", "video_end")
"""Where a cut-out begins and ends in its video (Time-R1, Qwen's video inputs)."""
EVENTS = ("events", "annotations")
AROUND = ("annotations", "data", "rows")
"""Lists of rows, in an object that is none itself."""
CHAT = ("messages", "conversations", "conversation", "prompt")
NESTED = ("reward_model", "extra_info", "metadata", "meta", "info")
"""Objects whose fields count as the row's where the row itself has none of the name."""

_ALL = (
    *VIDEO, *SENTENCE, *QUESTION, *SPAN, *START, *END, *WINDOWS, *ANSWER, *SOURCE, *DURATION, *CUT,
    *EVENTS, *AROUND, *CHAT, *NESTED,
)  # fmt: skip
_OTHER_UNITS = re.compile(r"(?:start|begin|end|stop).*(?:frame|ms|milli|ratio|percent)")


@lru_cache(maxsize=4096)
def plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()


@lru_cache(maxsize=256)
def _plain(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(plain(name) for name in names)


_KNOWN = frozenset(_plain(_ALL))


def is_known(name: str) -> bool:
    return plain(name) in _KNOWN


def is_given(value: Any) -> bool:
    return value is not None and value != "" and value != []


class Fields:
    """A row by the names above; `(the row's own name, value)` of what is there and not empty."""

    def __init__(self, row: dict[str, Any]) -> None:
        self._values: dict[str, tuple[str, Any]] = {}
        self.empty = {name for name, value in row.items() if value == []}
        """The row's own names of lists with nothing in them."""
        self._add(row, "")
        for name in NESTED:
            if nested := self._values.get(plain(name)):
                self._add(_as_row(nested[1]), f"{nested[0]}.")

    def _add(self, row: dict[str, Any], within: str) -> None:
        for name, value in row.items():
            if is_given(value):
                self._values.setdefault(plain(name), (within + name, value))

    def first(self, names: tuple[str, ...]) -> tuple[str, Any] | None:
        for key in _plain(names):
            if key in self._values:
                return self._values[key]
        return None

    def all(self, names: tuple[str, ...]) -> list[tuple[str, Any]]:
        """Each that is given, in the order of `names`."""
        return [self._values[key] for key in _plain(names) if key in self._values]

    def value(self, names: tuple[str, ...]) -> Any:
        """What the first of `names` is given; None where none is."""
        field = self.first(names)
        return None if field is None else field[1]

    def in_other_units(self) -> str | None:
        """The row's own name of a start or end that is not in seconds."""
        named = (name for key, (name, _) in self._values.items() if _OTHER_UNITS.fullmatch(key))
        return next(named, None)


def _as_row(value: Any) -> dict[str, Any]:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = parse_json(value.encode(errors="replace"))
        except BadAnnotationError:
            return {}
    return value if isinstance(value, dict) else {}
