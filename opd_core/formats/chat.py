"""Rows with a chat, as Video-OPD's training data are released: parquet, or JSON lines.

The exact columns of the released file were not at hand when this was written, so this takes what
chat data sets of this field have in common, and leaves a row out, with the reason, rather than
guess. Assumed of a row:

- a chat under `messages`, `conversations` or `prompt`: a list (or its JSON) of
  `{"role", "content"}` or `{"from", "value"}`, a content being text or a list of parts
  `{"type", "text" | "video"}`;
- the video in a column `videos`, `video` or `video_path` (the first of a list), or else in the
  chat's part of type `video`;
- the sentence in a column `query` or `sentence`, or else in the user's text, in quotes after
  `sentence` or `event`, as the prompts of TimeLens and of Time-R1 have it;
- the span in a column `span`, `spans`, `timestamp`, `solution`, `answer` or `ground_truth`, as
  numbers or as text, or else in the assistant's text, in the words of any of our templates.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from opd_core.annotation_fields import BadAnnotationError, as_object, parse_json
from opd_core.formats.found import (
    Annotated,
    Found,
    LeftOut,
    annotated,
    attempt,
    lines,
    opened,
)
from opd_core.templates import read_any

CHATS = ("messages", "conversations", "prompt")
VIDEOS = ("videos", "video", "video_path")
QUERIES = ("query", "sentence")
SPANS = ("span", "spans", "timestamp", "solution", "answer", "ground_truth")
ROWS_PER_BATCH = 256

_USERS, _ASSISTANTS = {"user", "human"}, {"assistant", "gpt"}
_QUOTED = (
    re.compile(
        r"\b(?:sentence|event|query)\b[^\"'“]{0,40}'(.+?)'(?=\s*[,.?]|\s+in the|\s*$)", re.S
    ),
    re.compile(r"\b(?:sentence|event|query)\b[^\"'“]{0,40}\"(.+?)\"", re.S),
    re.compile(r"\b(?:sentence|event|query)\b[^\"'“]{0,40}“(.+?)”", re.S),
)


def read_chat_rows(path: Path) -> Iterator[Found]:
    """Parquet by its first four bytes, JSON lines otherwise."""
    with opened(path) as file:
        parquet = file.read(4) == b"PAR1"
    return _read_parquet(path) if parquet else _read_lines(path)


def _read_lines(path: Path) -> Iterator[Found]:
    for place, line in lines(path):
        try:
            row = as_object(parse_json(line), "the line")
        except BadAnnotationError as error:
            yield LeftOut(place, None, str(error))
            continue
        yield attempt(place, None, partial(_row, place, row))


def _read_parquet(path: Path) -> Iterator[Found]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            known = {*CHATS, *VIDEOS, *QUERIES, *SPANS, "source", "duration"}
            columns = [name for name in file.schema_arrow.names if name in known]
            for batch in file.iter_batches(ROWS_PER_BATCH, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    place = f"{path.name}:{number}"
                    yield attempt(place, None, partial(_row, place, row))
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
        first = (str(error).splitlines() or [""])[0]
        reason = f"the parquet file cannot be read from row {number + 1} on: {first}"
        yield LeftOut(f"{path.name}:{number + 1}", None, reason)


def _row(place: str, row: dict[str, Any]) -> Annotated:
    chat = _chat(row)
    return annotated(
        place,
        _video(row, chat),
        _query(row, chat),
        _spans(row, chat),
        row.get("source"),
        row.get("duration"),
    )


def _first(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    """The first of these columns that is there and holds something."""
    return next((row[name] for name in names if row.get(name) not in (None, "", [])), None)


def _chat(row: dict[str, Any]) -> list[tuple[str, list[Any]]]:
    """(role, parts) of each message."""
    value = _first(row, CHATS)
    if isinstance(value, str):
        try:
            value = parse_json(value.encode(errors="replace"), "the chat")
        except BadAnnotationError:
            value = [{"role": "user", "content": value}]  # a prompt, as plain text
    if not isinstance(value, list):
        raise BadAnnotationError(f"there is no chat in any of the columns {', '.join(CHATS)}")
    chat = []
    for message in value:
        message = as_object(message, "a message of the chat")
        role = message.get("role", message.get("from"))
        content = message.get("content", message.get("value"))
        chat.append((str(role), content if isinstance(content, list) else [content]))
    return chat


def _video(row: dict[str, Any], chat: list[tuple[str, list[Any]]]) -> Any:
    video = _first(row, VIDEOS)
    parts = [p for _, content in chat for p in content if isinstance(p, dict) and p.get("video")]
    if video is None and parts:
        video = parts[0]["video"]
    while isinstance(video, list | dict) and video:
        if isinstance(video, list):
            if len(video) > 1:
                raise BadAnnotationError(f"the row has {len(video)} videos; one is expected")
            video = video[0]
        else:
            video = video.get("path", video.get("video"))
    if video is None:
        raise BadAnnotationError("the row names no video")
    return video.removeprefix("file://") if isinstance(video, str) else video


def _query(row: dict[str, Any], chat: list[tuple[str, list[Any]]]) -> Any:
    query = _first(row, QUERIES)
    if query is not None:
        return query
    for text in _texts(chat, _USERS):
        for pattern in _QUOTED:
            if found := pattern.search(text):
                return found.group(1)
    raise BadAnnotationError("the user's text has no sentence in quotes, and there is no 'query'")


def _spans(row: dict[str, Any], chat: list[tuple[str, list[Any]]]) -> Any:
    value = _first(row, SPANS)
    if isinstance(value, dict):
        value = _first(value, SPANS) or [value.get("start"), value.get("end")]
    if isinstance(value, list):
        return value
    for text in ([value] if isinstance(value, str) else []) + _texts(chat, _ASSISTANTS):
        if span := read_any(text):
            return [list(span)]
    raise BadAnnotationError("the row has no span, neither in a column nor in the answer")


def _texts(chat: list[tuple[str, list[Any]]], roles: set[str]) -> list[str]:
    found = []
    for role, parts in chat:
        for part in parts if role in roles else ():
            text = part.get("text") if isinstance(part, dict) else part
            if isinstance(text, str):
                found.append(text)
    return found
