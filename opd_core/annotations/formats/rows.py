"""Rows of any of this field's data sets: one about a video, its sentences and their spans.

TimeLens-100K  {"source", "video_path", "duration", "events": [{"query", "span": [[s, e]]}]}
QVHighlights   {"qid", "query", "duration", "vid", "relevant_windows": [[s, e], ...]}
Time-R1        {"video", "duration", "timestamp": [s, e], "sentence", "video_start", "video_end"}
verl           {"prompt": [{"role", "content"}], "videos": [{"video"}],
                "reward_model": {"ground_truth"}, "data_source", "extra_info"}
ms-swift       {"messages": [{"role", "content"}], "videos": [path]}
LLaMA-Factory  {"conversations": [{"from", "value"}], "videos": [path]}
plain          {"video", "start", "end", "query"}, or "span": [[s, e], ...] for start and end

They are one reader: names are looked up in `field_names.py`, so a row may mix them. The sentence is
in a field, or in quotes in the user's text; the span in a field, or in the assistant's text. What
is not there is not guessed: the row is left out, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from opd_core.annotations.fields import BadAnnotationError, as_object
from opd_core.annotations.formats import field_names as names
from opd_core.annotations.formats.chat import Chat, is_prompt, quoted_sentence
from opd_core.annotations.formats.containers import rows_of
from opd_core.annotations.formats.field_names import Fields, is_given
from opd_core.annotations.formats.found import (
    Annotated,
    Format,
    Found,
    LeftOut,
    OfVideo,
    annotated,
    attempt,
    left_out,
    of_video,
)
from opd_core.annotations.formats.spans import spans_in, spans_of, spans_of_text
from opd_core.annotations.times import seconds
from opd_core.types import Span

CUT_TOLERANCE_SECONDS = 0.5

T = TypeVar("T")
Check = Callable[[OfVideo], None]
"""Raises `BadAnnotationError` where a row cannot be used, whatever its sentences are."""
Build = Callable[[str, OfVideo], Annotated]
"""Of its place, and of what holds for the row."""


def read_rows(path: Path, check: Check | None = None) -> Iterator[Found]:
    for row in rows_of(path):
        if isinstance(row, LeftOut):
            yield row
        else:
            place, value = row
            yield from found_in_row(place, value, "the line", check)


def found_in_row(
    place: str, value: Any, what: str, check: Check | None = None, video: str | None = None
) -> Iterator[Found]:
    """The sentences of one row. `video`: its name, where the row does not say it itself."""
    try:
        inside = None if video is not None else _rows_inside(as_object(value, what))
    except BadAnnotationError as error:
        yield left_out(place, None, error)
        return
    if inside is None:
        yield from _sentences(place, value, what, check, video)
    else:
        for index, row in enumerate(inside):
            yield from _sentences(f"{place}#{index}", row, "the row", check, None)


def _rows_inside(value: dict[str, Any]) -> list[Any] | None:
    """Rows of an object that is no row itself: `{"data": [...]}`."""
    fields = Fields(value)
    return None if fields.first(names.VIDEO) else _list(fields, names.AROUND)


def _sentences(
    place: str, value: Any, what: str, check: Check | None, video: str | None
) -> Iterator[Found]:
    named = video
    try:
        row = _Row(Fields(as_object(value, what)), video)
        of = row.of_video()
        named = of.video
        if check is not None:
            check(of)
        sentences = row.sentences()
    except BadAnnotationError as error:
        yield left_out(place, named, error)
        return
    for suffix, build in sentences:
        yield attempt(place + suffix, named, partial(build, place + suffix, of))


class _Row:
    def __init__(self, fields: Fields, video: str | None = None) -> None:
        self._fields = fields
        self._key = video

    @cached_property
    def _chat(self) -> Chat:
        return Chat.of(self._fields.value(names.CHAT))

    def of_video(self) -> OfVideo:
        duration = self._fields.value(names.DURATION)
        of = of_video(self._video(), self._fields.value(names.SOURCE), duration)
        _refuse_cut_out(self._fields, of.duration)
        return of

    def _video(self) -> Any:
        video = self._fields.value(names.VIDEO)
        if video is None:
            video = self._key or self._chat.video()
        while isinstance(video, list | dict) and video:
            if isinstance(video, list):
                if len(video) > 1:
                    raise BadAnnotationError(f"the row has {len(video)} videos; one is expected")
                video = video[0]
            else:
                inner = Fields(video)
                _refuse_cut_out(inner, None)
                video = inner.value(names.VIDEO)
        if not is_given(video) or video == {}:
            raise BadAnnotationError(f"the row names no video ({_some(names.VIDEO)})")
        return video

    def sentences(self) -> list[tuple[str, Build]]:
        """(what its place has beyond the row's, how it is made) of each."""
        if "events" in self._fields.empty:
            raise BadAnnotationError("'events' is empty")
        builds: list[Build]
        if (events := _list(self._fields, names.EVENTS)) is not None:
            builds = [partial(_of_event, event) for event in events]
        elif (several := self._fields.first(names.SENTENCE)) and isinstance(several[1], list):
            spans = self._fields.first((*names.SPAN, *names.WINDOWS))
            builds = [partial(_of_pair, query, span) for query, span in _paired(several, spans)]
        else:
            return [("", self.single)]
        return [(f"#{index}", build) for index, build in enumerate(builds)]

    def single(self, place: str, of: OfVideo) -> Annotated:
        return annotated(place, of, self._sentence(), self._spans())

    def _sentence(self) -> Any:
        for of in (names.SENTENCE, names.QUESTION):
            value = self._fields.value(of)
            if value is None:
                continue
            if not isinstance(value, str):
                return value
            may_be_prompt = of is names.QUESTION or is_prompt(value)
            quoted = quoted_sentence(value) if may_be_prompt else None
            if quoted or not is_prompt(value):
                return quoted or value
        if quoted := _the_one(map(quoted_sentence, self._chat.questions()), "sentences in quotes"):
            return quoted
        chat = ", and its chat none in quotes" if self._chat.messages else ""
        raise BadAnnotationError(f"the row has no sentence ({_some(names.SENTENCE)}){chat}")

    def _spans(self) -> tuple[Span, ...]:
        value = spans_in(self._fields)
        if value is not None and not isinstance(value, str):
            return spans_of(value)
        answers = [answer for _, answer in self._fields.all(names.ANSWER)]
        for answer in ([] if value is None else [value]) + answers:
            if not isinstance(answer, str):
                return spans_of(answer)
            if spans := spans_of_text(answer):
                return spans
        if spans := _the_one(map(spans_of_text, self._chat.answers()), "answers with a span"):
            return spans
        if value is not None:
            return spans_of(value)  # raises, and shows it
        if odd := self._fields.in_other_units():
            raise BadAnnotationError(f"the row has {odd!r} and no time in seconds; give seconds")
        raise BadAnnotationError(
            "the row has no span, neither in a field "
            f"({_some((*names.SPAN, *names.WINDOWS))}) nor in the answer"
        )


def _list(fields: Fields, of: tuple[str, ...]) -> list[Any] | None:
    field = fields.first(of)
    if field is not None and not isinstance(field[1], list):
        raise BadAnnotationError(f"{field[0]!r} is not a list")
    return field[1] if field else None


def _of_event(event: Any, place: str, of: OfVideo) -> Annotated:
    fields = Fields(as_object(event, "the event"))
    _refuse_cut_out(fields, of.duration)
    return _Row(fields).single(place, of)


def _of_pair(query: Any, spans: Any, place: str, of: OfVideo) -> Annotated:
    return annotated(place, of, query, spans_of(spans))


def _paired(queries: tuple[str, Any], spans: tuple[str, Any] | None) -> Iterator[tuple[Any, Any]]:
    """Two lists that run in parallel; raises where they do not."""
    if spans is None or not isinstance(spans[1], list):
        raise BadAnnotationError(f"there is no list of spans beside {queries[0]!r}")
    if len(spans[1]) != len(queries[1]):
        raise BadAnnotationError(
            f"{spans[0]!r} has {len(spans[1])} entries and {queries[0]!r} has {len(queries[1])}"
        )
    return zip(queries[1], spans[1], strict=True)


def _the_one(values: Iterator[T | None], what: str) -> T | None:
    """Raises where a chat goes on about another moment."""
    several = list(dict.fromkeys(value for value in values if value))
    if len(several) > 1:
        raise BadAnnotationError(f"the chat has {len(several)} {what}; one is expected")
    return several[0] if several else None


def _refuse_cut_out(fields: Fields, duration: float | None) -> None:
    """A row about a part of its file: from where its times count is not said."""
    start, end = (fields.first((name,)) for name in names.CUT)
    for field, whole in ((start, 0.0), (end, duration)):
        if field is None or (isinstance(field[1], float) and math.isnan(field[1])):
            continue
        at = seconds(field[1], repr(field[0]))
        if whole is None or abs(at - whole) > CUT_TOLERANCE_SECONDS * (field is end):
            raise BadAnnotationError(
                f"the row is about a cut-out of its video ({field[0]!r} is {at:g}), and does not "
                "say whether its times count from there; cut the video, or give times of all of it"
            )


def _some(of: tuple[str, ...]) -> str:
    return ", ".join(repr(name) for name in of[:4]) + ", ..."


ROWS = Format("rows of JSON, JSON lines or parquet, one a video or one an event", read_rows)
