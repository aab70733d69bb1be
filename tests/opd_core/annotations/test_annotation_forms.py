"""The forms in which the same annotation is met, and what must not be taken for it.

The right value of each: `a dog runs`, from 2.0 s to 4.5 s of `a.mp4`.
"""

from __future__ import annotations

import gzip
import io
import json
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd_core.annotations.fields import BadAnnotationError
from opd_core.annotations.formats.found import Annotated, Found, LeftOut
from opd_core.annotations.formats.readers import FORMATS
from opd_core.annotations.formats.spans import spans_of
from opd_core.annotations.times import seconds
from opd_core.annotations.video_folder import VideoFolder
from opd_core.annotations.video_names import NamedPath
from opd_core.types import Span
from tests.known import only

V, Q = {"video": "a.mp4"}, {"query": "a dog runs"}
VQ = V | Q
TRUE = VQ | {"span": [[2, 4.5]]}
ASKED = '<video>To accurately pinpoint the event "a dog runs" in the video, determine the period.'


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


def table(rows: list[Any]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def as_bytes(content: object) -> bytes:
    if isinstance(content, bytes):
        return content
    return content.encode() if isinstance(content, str) else json.dumps(content).encode()


def read(format: str, content: object) -> list[Found]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.write_bytes(as_bytes(content))
        return list(FORMATS[format].read(path))


ROWS = {
    "one pair": VQ | {"span": [2, 4.5]},
    "pairs": TRUE,
    "start, end": VQ | {"start": 2, "end": 4.5},
    "start_time": VQ | {"start_time": 2, "end_time": 4.5},
    "startTime": VQ | {"startTime": 2, "endTime": 4.5},
    "Start Time": {"Video": "a.mp4", "Query": "a dog runs", "Start Time": 2, "End Time": 4.5},
    "start_sec": VQ | {"start_sec": 2, "end_sec": 4.5},
    "begin, stop": VQ | {"begin": "2", "stop": "4.5"},
    "text": VQ | {"start": "2.0", "end": " 4.5 "},
    "text with units": VQ | {"start": "2s", "end": "4.5 seconds"},
    "decimal commas": VQ | {"start": "2,0", "end": "4,5"},
    "clocks": VQ | {"start": "00:02", "end": "0:04.5"},
    "clocks with hours": VQ | {"start": "00:00:02", "end": "00:00:04,500"},
    "words": VQ | {"start": "0m 2s", "end": "0h0m4.5s"},
    "ISO 8601": VQ | {"start": "PT2S", "end": "PT0M4.5S"},
    "timestamp": VQ | {"timestamp": [2, 4.5]},
    "timestamps": VQ | {"timestamps": [[2, 4.5]]},
    "relevant_windows": {"vid": "a.mp4", "qid": 1, **Q, "relevant_windows": [[2, 4.5]]},
    "window": VQ | {"window": [2, 4.5]},
    "segment": VQ | {"segment": [2.0, 4.5]},
    "moment": VQ | {"moment": ["2", "4.5"]},
    "gt": VQ | {"gt": [2, 4.5]},
    "time": VQ | {"time": "2 - 4.5"},
    "ground_truth": VQ | {"ground_truth": "2.0 to 4.5"},
    "solution": VQ | {"solution": [2, 4.5]},
    "answer tags": VQ | {"solution": "<think>1 to 9?</think><answer>2.0 to 4.5</answer>"},
    "JSON in text": VQ | {"span": "[[2, 4.5]]"},
    "a pair in text": VQ | {"span": "(2.0, 4.5)"},
    "a list as Python prints it": VQ | {"gt": "['2.0', '4.5']"},
    "a list as numpy prints it": VQ | {"gt": "[2.  4.5]"},
    "an object as Python prints it": VQ | {"gt": "{'start': 2.0, 'end': 4.5}"},
    "two numbers in text": VQ | {"span": "2.0 4.5"},
    "clocks in text": VQ | {"span": "00:02 - 00:04.5"},
    "a dash": VQ | {"span": "2.0s–4.5s"},
    "a comma pair": VQ | {"span": "2,0 - 4,5"},
    "an arrow of subtitles": VQ | {"span": "00:00:02,000 --> 00:00:04,500"},
    "an object": VQ | {"span": {"start": 2, "end": "4.5"}},
    "objects": VQ | {"spans": [{"start_time": "00:02", "end_time": 4.5}]},
    "a list of texts": VQ | {"spans": ["2 to 4.5"]},
    "sentence": V | {"sentence": "a dog runs", "span": [2, 4.5]},
    "caption": V | {"caption": " a dog runs\n", "span": [2, 4.5]},
    "text as the sentence": V | {"text": "a dog runs", "span": [2, 4.5]},
    "question": V | {"question": "a dog runs", "span": [2, 4.5]},
    "question with a prompt": V | {"question": ASKED, "span": [2, 4.5]},
    "query with a prompt": V | {"query": ASKED, "response": "From 2.0 to 4.5 seconds."},
    "problem, solution": V | {"problem": "a dog runs", "solution": "<answer>2 to 4.5</answer>"},
    "video_path": {"video_path": "a.mp4", **Q, "span": [2, 4.5]},
    "video_name": {"video_name": "a.mp4", **Q, "span": [2, 4.5]},
    "video_id beside a path": {"video_id": 7, "video_path": "a.mp4", **Q, "span": [2, 4.5]},
    "a list of one video": {"videos": ["a.mp4"], **Q, "span": [2, 4.5]},
    "an object as the video": {"video": {"path": "a.mp4", "bytes": None}, **Q, "span": [2, 4.5]},
    "a file URL": {"videos": [{"type": "video", "video": "file://a.mp4"}], **Q, "span": [2, 4.5]},
    "Time-R1": {"qid": "x", "duration": 9.0, "timestamp": [2, 4.5], "sentence": "a dog runs",
                "video": "a.mp4", "video_start": None, "video_end": None},
    "a cut-out that is all": TRUE | {"duration": 9, "video_start": 0, "video_end": 9.0},
    "TimeLens": {"video_path": "a.mp4", "duration": 9, "source": "s",
                 "events": [{"query": "a dog runs", "span": [[2, 4.5]]}]},
    "TimeLens with one pair": {"video_path": "a.mp4", "events": [VQ | {"span": [2, 4.5]}]},
    "parallel lists": V | {"sentences": ["a dog runs"], "timestamps": [[2, 4.5]]},
    "verl": {"data_source": "tvg", "prompt": [user(ASKED)], "videos": [{"video": "a.mp4"}],
             "reward_model": {"style": "rule", "ground_truth": "2.0 to 4.5"},
             "extra_info": {"index": 0, "split": "train"}},
    "verl with a pair": {"prompt": [user(ASKED)], "videos": [{"video": "a.mp4"}],
                         "reward_model": {"ground_truth": [2.0, 4.5]}},
    "verl with text of JSON": {"prompt": ASKED, "videos": ["a.mp4"],
                               "reward_model": '{"ground_truth": "[2.0, 4.5]"}'},
    "verl with all in extra_info": {"prompt": [user("When?")], "extra_info":
                                    VQ | {"ground_truth": [[2, 4.5]]}},
    "ms-swift": {"messages": [user(ASKED), {"role": "assistant", "content": "2.0 to 4.5"}],
                 "videos": ["a.mp4"]},
    "a part of the chat": {"messages": [user([{"type": "video", "video": "a.mp4"},
                                              {"type": "text", "text": ASKED}])], "gt": [2, 4.5]},
    "LLaMA-Factory": {"conversations": [{"from": "human", "value": ASKED},
                                        {"from": "gpt", "value": "The event happens in 2 - 4.5 s"}],
                      "videos": ["a.mp4"]},
    "alpaca": {"instruction": ASKED, "input": "", "output": "2.0 - 4.5", "videos": ["a.mp4"]},
}  # fmt: skip

JSONISH = ("timelens-100k", "qvhighlights", "video-opd", "jsonl")


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("container", ["lines", "array", "parquet"])
def test_a_row_in_every_form(name: str, container: str) -> None:
    row = ROWS[name]
    content = {"lines": row, "array": [row], "parquet": None}[container]
    if container == "parquet":
        try:
            content = table([row])
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            pytest.skip("no row of a parquet file: its types are mixed")
    for format in JSONISH:
        (found,) = read(format, content)
        assert isinstance(found, Annotated), found
        assert found.video == "a.mp4" and found.query == "a dog runs"
        assert found.spans == (Span(2.0, 4.5),)
        assert found.place in ("file:1", "file:1#0")


LINE = json.dumps(TRUE)
OTHER = json.dumps(TRUE | {"span": [5, 6]})
FILES = {
    "lines": ("jsonl", f"{LINE}\n{OTHER}\n"),
    "blank lines": ("jsonl", f"\n\n{LINE}\n  \n{OTHER}\n\n"),
    "no last newline": ("jsonl", f"{LINE}\n{OTHER}"),
    "CRLF": ("jsonl", f"{LINE}\r\n{OTHER}\r\n"),
    "CR": ("jsonl", f"{LINE}\r{OTHER}\r"),
    "a byte order mark": ("jsonl", f"\ufeff{LINE}\n{OTHER}".encode()),
    "UTF-16": ("jsonl", f"{LINE}\n{OTHER}".encode("utf-16")),
    "UTF-16, big end first": ("jsonl", f"\ufeff{LINE}\n{OTHER}".encode("utf-16-be")),
    "gzip": ("jsonl", gzip.compress(f"{LINE}\n{OTHER}".encode(), mtime=0)),
    "lines with commas": ("jsonl", f"{LINE},\n{OTHER},\n"),
    "an array": ("jsonl", f"[{LINE}, {OTHER}]"),
    "an array, a row a line": ("jsonl", f"[\n{LINE},\n{OTHER}\n]\n"),
    "an array with a last comma": ("jsonl", f"[\n{LINE},\n{OTHER},\n]\n"),
    "an array with a mark": ("jsonl", f"\ufeff [ {LINE},{OTHER}]".encode()),
    "an indented array": ("jsonl", json.dumps([TRUE, TRUE | {"span": [5, 6]}], indent=4)),
    "an array of TimeLens": ("timelens-100k", [V | {"events": [Q | {"span": [[2, 4.5]]}]},
                                               V | {"events": [Q | {"span": [[5, 6]]}]}]),
    "indented objects": ("jsonl", json.dumps(TRUE, indent=1) + "\n"
                         + json.dumps(TRUE | {"span": [5, 6]}, indent=1)),
    "an object around": ("jsonl", {"version": 1, "data": [TRUE, TRUE | {"span": [5, 6]}]}),
    "parquet": ("video-opd", table([TRUE, TRUE | {"span": [[5.0, 6.0]]}])),
    "parquet of numbers": ("jsonl", table([VQ | {"start": 2.0, "end": 4.5, "duration": None},
                                           VQ | {"start": 5.0, "end": 6.0, "duration": 9.0}])),
    "commas": ("csv", "video,start,end,query\na.mp4,2,4.5,a dog runs\na.mp4,5,6,a dog runs\n"),
    "semicolons": ("csv", "video;start;end;query\na.mp4;2;4.5;a dog runs\na.mp4;5;6;a dog runs"),
    "decimal commas": ("csv", "video;start;end;query\na.mp4;2,0;4,5;a dog runs\n"
                       "a.mp4;5,000;6,000;a dog runs\n"),
    "tabs": ("csv", "a.mp4\t2\t4.5\ta dog runs\na.mp4\t5\t6\ta dog runs\n"),
    "bars": ("csv", "query|vid|from|start|end\na dog runs|a.mp4||2|4.5\na dog runs|a.mp4||5|6\n"),
    "no header, decimal commas": ("csv", "a.mp4;2,0;4,5;a dog runs\na.mp4;5;6;a dog runs\n"),
    "quotes": ("csv", '"video","sentence","timestamp"\n"a.mp4","a dog runs","[2.0, 4.5]"\n'
               '"a.mp4","a dog runs","5-6"\n'),
    "other names and order": ("csv", "Sentence;End Time;Start Time;Video Path\n"
                              "a dog runs;0:04.5;0:02;a.mp4\na dog runs;6 s;5 s;a.mp4\n"),
    "Excel's": ("csv", "sep=;\r\nvideo;start;end;query\r\na.mp4;2,0;4,5;a dog runs\r\n"
                "a.mp4;5;6;a dog runs\r\n"),
    "Excel's Unicode text": ("csv", ("video\tstart\tend\tquery\r\na.mp4\t2,0\t4,5\ta dog runs\r\n"
                                     "a.mp4\t5\t6\ta dog runs\r\n").encode("utf-16")),
    "empty cells at the end": ("csv", "video,start,end,query,,\na.mp4,2,4.5,a dog runs,,\n"
                               "a.mp4,5,6,a dog runs,,,\n"),
    "Charades-STA with clocks": ("charades-sta", "a.mp4 0:02 4.5##a dog runs\n"
                                 "a.mp4 5 6##a dog runs"),
    "a list a video": ("activitynet", {"a.mp4": [{"sentence": "a dog runs", "timestamp": [2, 4.5]},
                                                 {"sentence": "a dog runs", "timestamp": [5, 6]}]}),
    "lists in text": ("activitynet", {"a.mp4": {"sentences": ["a dog runs", "a dog runs"],
                                                "timestamps": ["2 - 4.5", ["5", "00:06"]]}}),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_in_every_form(name: str) -> None:
    found = only(Annotated, read(*FILES[name]))
    assert [(item.video, item.query) for item in found] == [("a.mp4", "a dog runs")] * 2
    assert [item.spans for item in found] == [(Span(2.0, 4.5),), (Span(5.0, 6.0),)]
    assert len({item.place for item in found}) == 2


def test_places_are_lines_or_rows() -> None:
    assert [f.place for f in read(*FILES["blank lines"])] == ["file:3", "file:5"]
    assert [f.place for f in read(*FILES["an array, a row a line"])] == ["file:1", "file:2"]
    assert [f.place for f in read(*FILES["Excel's"])] == ["file:3", "file:4"]


REFUSED = {
    "milliseconds": (VQ | {"start": "2000 ms", "end": "4500 ms"}, "number of seconds ('2000 ms')"),
    "percent": (VQ | {"span": ["10%", "20%"]}, "names no span"),
    "percent of a start": (VQ | {"start": "10%", "end": "20%"}, "not a number of seconds ('10%')"),
    "frames": (VQ | {"start_frame": 60, "end_frame": 90}, "'start_frame' and no time in seconds"),
    "milliseconds by name": (VQ | {"start_ms": 60, "end_ms": 90}, "no time in seconds"),
    "a timecode with frames": (VQ | {"start": "00:00:02:12", "end": 9}, "not a number of seconds"),
    "seconds of a clock": (VQ | {"start": "00:75", "end": 99}, "no time of a clock"),
    "minutes of a clock": (VQ | {"start": "0:75:00", "end": 9999}, "no time of a clock"),
    "thousands or decimals": (VQ | {"start": "1,500", "end": 2000}, "may be 1.500 or 1500"),
    "Arabic digits": (VQ | {"start": "٢", "end": 4}, "not a number of seconds"),
    "a boolean": (VQ | {"start": True, "end": 4}, "not a number"),
    "NaN": (VQ | {"start": float("nan"), "end": 4}, "not a finite number"),
    "infinity as text": (VQ | {"start": 1, "end": "inf"}, "not a finite number"),
    "three numbers": (VQ | {"span": [1, 2, 3]}, "not of the form"),
    "three numbers in text": (VQ | {"ground_truth": "1, 2, 3"}, "names no span"),
    "one number": (VQ | {"timestamp": 2.5}, "no span of the form"),
    "half a span": (VQ | {"start": 2.5}, "'end' is missing"),
    "a duration in words": (TRUE | {"duration": "long"}, "'duration' is not a number of seconds"),
    "a cut-out": (TRUE | {"video_start": 30.0, "video_end": 60.0}, "'video_start' is 30"),
    "a cut-out of its beginning": (TRUE | {"duration": 60, "video_end": 30}, "'video_end' is 30"),
    "a cut-out in the video": (Q | {"videos": [{"video": "a.mp4", "video_start": 5}], "gt": [1, 2]},
                               "cut-out"),
    "two videos": ({"videos": ["a.mp4", "b.mp4"], **Q, "span": [1, 2]}, "has 2 videos"),
    "no video": (Q | {"span": [1, 2]}, "names no video"),
    "no sentence": (V | {"span": [1, 2]}, "has no sentence"),
    "no quoted sentence": (V | {"messages": [user("<video>When?")], "gt": [1, 2]}, "no sentence"),
    "a number as the sentence": (V | {"query": 5, "span": [1, 2]}, "the query is not text"),
    "a chat of two moments": (
        V
        | {
            "messages": [
                user("the event 'a'"), {"role": "assistant", "content": "1 to 2"},
                user("the event 'b'"), {"role": "assistant", "content": "3 to 4"},
            ]
        },
        "2 sentences in quotes",
    ),
    "a chat of two answers": (
        VQ
        | {
            "messages": [
                {"role": "assistant", "content": "1 to 2"},
                {"role": "assistant", "content": "3 to 4"},
            ]
        },
        "2 answers with a span",
    ),
    "minutes and seconds in primes": (VQ | {"gt": "5'30\""}, "names no span"),
    "frames in text": (VQ | {"gt": "frames 10 to 20"}, "names no span"),
    "frames after the pair": (VQ | {"gt": "from 10 to 20 frames"}, "names no span"),
    "minutes in text": (VQ | {"gt": "1.5 to 2.5 minutes"}, "names no span"),
    "milliseconds in text": (VQ | {"gt": "1500 to 2500 ms"}, "names no span"),
    "percent in text": (VQ | {"gt": "10 - 20%"}, "names no span"),
    "no span": (VQ, "the row has no span"),
    "an answer without a span": (VQ | {"answer": "I cannot tell."}, "the row has no span"),
    "lists of two lengths": (V | {"queries": ["a", "b"], "spans": [[1, 2]]}, "has 1 entries"),
    "no spans beside sentences": (V | {"queries": ["a", "b"]}, "no list of spans"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("format", JSONISH)
def test_what_cannot_be_meant_in_one_way_is_left_out(name: str, format: str) -> None:
    row, reason = REFUSED[name]
    (found,) = read(format, row)
    assert isinstance(found, LeftOut) and found.place == "file:1"
    assert reason in found.reason and "\n" not in found.reason


@pytest.mark.parametrize(
    ("format", "content", "reasons"),
    [
        ("jsonl", f"[{LINE}, {{]".encode(), [None, "not JSON from row 2 on"]),
        ("jsonl", f"[{LINE}", [None, "not JSON from row 2 on"]),
        ("jsonl", f"[{LINE}] [", [None, "text after the end"]),
        ("jsonl", f"[{LINE}, 5, {LINE}]", [None, "not a JSON object", None]),
        ("jsonl", f"{LINE}\nnonsense\n{LINE}", [None, "not JSON", None]),
        ("jsonl", LINE.replace("dog", "chién").encode("latin-1") + b"\n" + LINE.encode(),
         ["save the file as UTF-8", None]),
        ("jsonl", b'[{"query": "\xe9"}]', ["save it as UTF-8"]),
        ("csv", "video;start;end;query\na;1;2;chién\na;1;2;q".encode("latin-1"),
         ["no text; save the file as UTF-8", None]),
        ("csv", "video,start,query\na,1,q\n", ["'end' is missing"]),
        ("csv", "video,start,end,query\na,1,2\na,1,2,q\n", ["has 3 cells and not 4", None]),
        ("csv", "video,start,end,query\na,1,5,2,5,q\n", ["has 6 cells"]),
        ("csv", 'video,start,end,query\na,"1,500",2000,q\n', ["may be 1.500 or 1500"]),
        ("jsonl", gzip.compress(b"{}", mtime=0)[:-6], ["damaged gzip"]),
        ("csv", b"PK\x03\x04" + bytes(40), ["ZIP archive or Excel's"]),
        ("charades-sta", b"PK\x03\x04" + bytes(40), ["ZIP archive or Excel's"]),
        ("activitynet", b"PK\x03\x04" + bytes(40), ["ZIP archive or Excel's"]),
    ],
)  # fmt: skip
def test_what_is_broken_costs_itself(
    format: str, content: str | bytes, reasons: list[str | None]
) -> None:
    found = read(format, content)
    assert [isinstance(item, Annotated) for item in found] == [r is None for r in reasons], found
    for item, reason in zip(found, reasons, strict=True):
        assert reason is None or reason in only(LeftOut, [item])[0].reason


@pytest.mark.parametrize(
    "span",
    ["4.5 to 2.0", "The event happens in 4.5 - 2.0 seconds.", "<answer>4.5 to 2</answer>",
     [4.5, 2.0], "[4.5, 2.0]", {"start": "4.5", "end": "2"}, "00:04.5 - 00:02"],
)  # fmt: skip
def test_a_reversed_span_is_read_as_it_stands(span: str | list[float] | dict[str, str]) -> None:
    (found,) = read("video-opd", VQ | {"answer": span})
    assert isinstance(found, Annotated) and found.spans == (Span(4.5, 2.0),)


@pytest.mark.parametrize("text", ["-1.0 to 2.5", "<answer>-1.0 to 2.5</answer>", "[-1, 2.5]"])
def test_a_negative_span_keeps_its_sign(text: str) -> None:
    assert spans_of(text) == (Span(-1.0, 2.5),)


def test_all_spans_of_a_text_are_kept() -> None:
    both = (Span(1, 2.5), Span(4, 5))
    for text in ("1.0 to 2.5, 4 to 5", "[1.0 - 2.5]; [4 - 5]", "[[1, 2.5], [4, 5]]",
                 "0:01-0:02.5 and 0:04-0:05"):  # fmt: skip
        assert spans_of(text) == both


times = st.integers(0, 360_000).map(lambda n: n / 1000)


@given(times)
def test_every_way_to_write_a_time_is_the_same_time(value: float) -> None:
    whole, rest = divmod(value, 60)
    hours, minutes = divmod(int(whole), 60)
    ways = (
        value, str(value), f" {value} s", f"{value}sec", f"{value:.4f} seconds", f"+{value}",
        f"{value:.4f}".replace(".", ","), f"{int(whole)}:{rest:06.3f}", f"{int(whole)}m{rest:.3f}s",
        f"{hours:02d}:{minutes:02d}:{rest:06.3f}",
        f"{hours:02d}:{minutes:02d}:{rest:06.3f}".replace(".", ","),
        f"PT{hours}H{minutes}M{rest:.3f}S", timedelta(seconds=value),
    )  # fmt: skip
    for way in ways:
        assert seconds(way, "it") == pytest.approx(value, abs=1e-9), way


@given(st.text(max_size=12) | st.from_regex(r"[-+0-9.,:smh ]{0,12}", fullmatch=True))
def test_any_text_is_a_time_or_a_reason(text: str) -> None:
    try:
        value = seconds(text, "it")
    except BadAnnotationError as error:
        assert str(error).startswith("it ") and "\n" not in str(error)
    else:
        assert abs(value) < float("inf") and any(c.isdigit() for c in text)


@given(times, times, st.sampled_from([" to ", " - ", "-", "–", ", ", ";", " until ", " --> "]))
def test_a_pair_in_text_is_that_pair(start: float, end: float, join: str) -> None:
    assert spans_of(f"{start}{join}{end}") == (Span(start, end),)
    assert spans_of(f"[{start}s{join}{end} s]") == (Span(start, end),)


names = st.text(st.characters(categories=["L", "Nd"], include_characters="_-. "), min_size=1)
parts = names.filter(lambda n: n.strip(". ") and n == n.strip())


@given(st.lists(parts, min_size=1, max_size=4))
def test_a_path_of_windows_is_the_path_of_posix(folders: list[str]) -> None:
    posix = NamedPath.of("/".join(folders))
    assert posix.parts == tuple(folders) and not posix.is_absolute
    absolute = NamedPath.of("/" + "/".join(folders))
    assert absolute.parts == posix.parts and absolute.is_absolute
    slashed = "\\".join(folders)
    if len(folders) > 1:
        assert NamedPath.of(slashed) == NamedPath(posix.parts, False, True)
    for root in ("C:\\", "d:/", "\\\\server\\share\\", "\\", "file:///C:/"):
        assert NamedPath.of(root + slashed) == NamedPath(posix.parts, True, True)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("C:\\data\\a.mp4", "a.mp4"),
        ("C:\\data\\sub\\c.mp4", "sub/c.mp4"),
        ("C:/data/sub/c.mp4", "sub/c.mp4"),
        ("\\\\server\\share\\videos\\a.mp4", "a.mp4"),
        ("sub\\c.mp4", "sub/c.mp4"),
        ("sub\\c", "sub/c.mp4"),
        (".\\a.mp4", "a.mp4"),
        ("videos\\a.mp4", "a.mp4"),
        ("videos/sub/c.mp4", "sub/c.mp4"),
        ("my\\videos\\sub\\c.mp4", "sub/c.mp4"),
        ("file:///C:/data/a.mp4", "a.mp4"),
        ("D:\\a", "a.mp4"),
        ("/far/sub/c", "sub/c.mp4"),
        ("file:///data/with%20space.mp4", "with space.mp4"),
        ("s3://bucket/sub/c.mp4", "sub/c.mp4"),
        ("..\\a.mp4", None),
        ("C:\\data\\..\\..\\a.mp4", None),
        ("other\\c.mp4", None),
        ("other\\a.mp4", None),
        ("C:\\", None),
        ("\\", None),
    ],
)
def test_which_file_is_meant(tmp_path: Path, name: str, file: str | None) -> None:
    videos = tmp_path / "my" / "videos"
    (videos / "sub").mkdir(parents=True)
    for there in ("a.mp4", "sub/c.mp4", "with space.mp4"):
        (videos / there).touch()
    assert VideoFolder(videos).find(name) == file
