"""Every reader: its own format in full, and any bytes at all without an exception."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_core.annotations.formats.found import Annotated, LeftOut
from opd_core.annotations.formats.readers import FORMATS
from opd_core.types import Span, VideoOPDError
from tests.known import only

ANSWER = "The event happens in 2.0 - 4.5 seconds."
QUESTION = "<video>Please find the visual event described by the sentence 'a man's hat falls', det"

FILES: dict[str, Any] = {
    "timelens-100k": [
        {
            "source": "cosmo",
            "video_path": "c/a.mp4",
            "duration": 9.0,
            "events": [{"query": "a dog runs", "span": [[2, 4.5]]}],
        }
    ],
    "timelens-bench": {"a": {"duration": 9.0, "spans": [[2, 4.5]], "queries": ["a dog runs"]}},
    "charades-sta": "a 2.0 4.5##a dog runs\n",
    "activitynet": {"a": {"duration": 9, "timestamps": [[2, 4.5]], "sentences": [" a dog runs"]}},
    "qvhighlights": [
        {
            "qid": 1,
            "query": "a dog runs",
            "duration": 9,
            "vid": "a",
            "relevant_windows": [[2, 4.5], [6, 8]],
            "saliency_scores": [[1, 2, 3]],
        }
    ],
    "video-opd": [
        {
            "messages": [
                {"role": "user", "content": "Find the event 'a dog runs' in the video."},
                {"role": "assistant", "content": ANSWER},
            ],
            "videos": ["/data/a.mp4"],
        }
    ],
    "csv": "query,video,end,start\na dog runs,a,4.5,2\n",
    "jsonl": [{"video": "a", "start": 2, "end": 4.5, "query": "a dog runs"}],
}


def as_bytes(content: object) -> bytes:
    match content:
        case bytes():
            return content
        case str():
            return content.encode()
        case list():
            lines = [x if isinstance(x, bytes) else json.dumps(x).encode() for x in content]
            return b"\n".join(lines)
        case _:
            return json.dumps(content).encode()


def read(format: str, content: object) -> list[Annotated | LeftOut]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.write_bytes(as_bytes(content))
        return list(FORMATS[format].read(path))


@pytest.mark.parametrize("format", FORMATS)
def test_each_format(format: str) -> None:
    (found,) = read(format, FILES[format])
    assert isinstance(found, Annotated), found
    assert found.query == "a dog runs" and found.spans[0] == Span(2.0, 4.5)
    assert found.place.startswith("file:")
    named = {"timelens-100k": "c/a.mp4", "video-opd": "/data/a.mp4"}
    assert found.video == named.get(format, "a")


def test_several_windows_are_kept_in_their_order_and_once() -> None:
    row = dict(FILES["qvhighlights"][0], relevant_windows=[[6, 8], [2, 4], [6, 8]])
    (found,) = only(Annotated, read("qvhighlights", [row]))
    assert found.spans == (Span(6, 8), Span(2, 4))


def test_a_bad_entry_leaves_its_neighbours() -> None:
    content = {
        "a": {"duration": 9, "timestamps": [[0, 1], [1]], "sentences": ["one", "two"]},
        "b": {"duration": 9, "timestamps": [[0, 1]], "sentences": ["one", "two"]},
        "c": None,
        "d": {"duration": 9, "timestamps": [[0, 1]], "sentences": ["one"]},
    }
    found = read("activitynet", content)
    assert [(f.place, type(f).__name__) for f in found] == [
        ("file:a#0", "Annotated"),
        ("file:a#1", "LeftOut"),
        ("file:b", "LeftOut"),
        ("file:c", "LeftOut"),
        ("file:d#0", "Annotated"),
    ]
    assert only(LeftOut, found[2:3])[0].reason == "'timestamps' has 1 entries and 'sentences' has 2"


def test_csv_without_a_header_with_a_quoted_comma_and_more_columns() -> None:
    (found,) = only(Annotated, read("csv", 'a.mp4,1,2,"a dog, running"\n'))
    assert found.query == "a dog, running" and found.source is None
    (found,) = only(
        Annotated, read("csv", "\ufeffVideo,Start,End,Query,duration,source\na,1,2,q,9.5,mine\n")
    )
    assert (found.duration, found.source) == (9.5, "mine")


@pytest.mark.parametrize(
    ("format", "content", "reason"),
    [
        ("charades-sta", "a 2.0 4.5 a dog runs\n", "not of the form"),
        ("charades-sta", "a 2.0 x##a dog runs\n", "'end' is not a number"),
        ("charades-sta", "a nan 3##a dog runs\n", "not a finite number"),
        ("charades-sta", b"a 1 2##\xff\n", "not UTF-8"),
        ("csv", "a,1,2\n", "has 3 cells and not 4"),
        ("csv", b"a,1,2,\xff\n", "no text"),
        ("csv", "a,1,2," + "x" * 200_000 + "\n", "no CSV"),
        ("qvhighlights", [{"vid": "a", "query": "q", "duration": 9}], "the row has no span"),
        ("timelens-bench", "[1]", "not one JSON object"),
        ("timelens-bench", "{", "not JSON"),
        ("jsonl", [{"video": "a", "start": 1, "query": "q"}], "'end' is missing"),
        ("jsonl", [{"video": "a", "start": "1 %", "end": 2, "query": "q"}], "not a num"),
        ("video-opd", [{"videos": ["a"]}], "the row has no sentence"),
        ("video-opd", b"PAR1 and then nothing", "cannot be read from row 1 on"),
    ],
)
def test_what_is_wrong_is_said(
    format: str, content: str | bytes | list[dict[str, Any]], reason: str
) -> None:
    (found,) = read(format, content)
    assert isinstance(found, LeftOut) and reason in found.reason
    assert "\n" not in found.reason


def parquet(rows: list[dict[str, object]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


PART = [{"type": "video", "video": "c/a.mp4"}, {"type": "text", "text": QUESTION}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": QUESTION}], "videos": ["c/a.mp4"],
         "span": [2, 4.5]},
        {"messages": json.dumps([{"role": "user", "content": PART}]), "solution": ANSWER},
        {"prompt": QUESTION, "video": {"path": "c/a.mp4"}, "answer": "<answer>2 to 4.5</answer>"},
        {"conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}],
         "video_path": "file://c/a.mp4"},
        {"messages": [{"role": "user", "content": "?"}], "query": "a man's hat falls",
         "videos": ["c/a.mp4"], "solution": '{"start": 2, "end": 4.5}'},
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_chats_as_they_are_met(row: dict[str, Any], form: str) -> None:
    (found,) = read("video-opd", parquet([row]) if form == "parquet" else [row])
    assert isinstance(found, Annotated), found
    assert (found.video, found.query) == ("c/a.mp4", "a man's hat falls")
    assert found.spans == (Span(2.0, 4.5),)


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_is_not_there_is_named(format: str, tmp_path: Path) -> None:
    with pytest.raises(VideoOPDError, match=r"nothing\.x"):
        list(FORMATS[format].read(tmp_path / "nothing.x"))


def anything() -> st.SearchStrategy[object]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
        max_leaves=6,
    )


KEYS = (
    "source", "video_path", "duration", "events", "query", "span", "vid", "relevant_windows",
    "video", "start", "end", "messages", "videos", "solution", "role", "content", "spans",
    "queries", "timestamps", "sentences", "type", "text", "conversations", "prompt",
    "reward_model", "ground_truth", "extra_info", "timestamp", "sentence", "video_start", "data",
    "annotations", "answer", "question", "path", "start_frame", "source",
)  # fmt: skip


def nearly() -> st.SearchStrategy[object]:
    """JSON whose keys are those that the readers look for, at any depth."""
    texts = st.sampled_from(
        [
            "user",
            "a.mp4",
            QUESTION,
            ANSWER,
            "{",
            "<answer>1 to 2",
            "text",
            "1.0 to 2.5",
            "00:01",
            "[1, 2]",
            "[[1, 2], {",
            "<video>",
            "C:\\a.mp4",
            "",
        ]
    )
    leaves = st.none() | st.floats() | st.integers() | texts | st.text(max_size=6)
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6)
        ),
        max_leaves=12,
    )


lines_of_text = st.lists(
    st.text(max_size=20)
    | st.tuples(st.text(max_size=4), st.floats(), st.floats(), st.text(max_size=9)).map(
        lambda t: f"{t[0]} {t[1]} {t[2]}##{t[3]}"
    )
    | st.lists(st.text(max_size=4), max_size=5).map(",".join),
    max_size=4,
).map("\n".join)
contents = (
    st.binary(max_size=60)
    | lines_of_text.map(lambda text: text.encode(errors="surrogatepass"))
    | st.lists(nearly() | anything(), max_size=3)
    | st.dictionaries(st.text(max_size=4), nearly(), max_size=3)
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), contents)
def test_anything_in_annotations_or_reasons_out(format: str, content: bytes) -> None:
    check(read(format, content))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_parquet_file_is_no_exception(data: st.DataObject) -> None:
    whole = bytearray(parquet([{"messages": [{"role": "user", "content": QUESTION}], "n": 1}] * 3))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(4, len(whole) - 1))] = data.draw(st.integers(0, 255))
    check(read("video-opd", bytes(whole[: data.draw(st.integers(4, len(whole)))])))


def check(items: list[Annotated | LeftOut]) -> None:
    for item in items:
        assert item.place.startswith("file")
        if isinstance(item, LeftOut):
            assert item.reason
            continue
        assert item.video and item.query == item.query.strip() != "" and item.spans
        assert all(abs(end) < float("inf") for span in item.spans for end in span)
        json.dumps([item.query, item.video]).encode()
