"""Any file in, examples or reasons out."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_core.annotations.fields import END_TOLERANCE_SECONDS
from opd_core.annotations.timelens import read_timelens
from opd_core.types import GroundingExample, QuarantinedItem, Span, VideoOPDError, make_example_id
from tests.known import only

GOOD: dict[str, Any] = {
    "source": "cosmo_cap",
    "video_path": "a/b.mp4",
    "duration": 30.5,
    "events": [
        {"query": "a dog barks", "span": [[1.5, 4]]},
        {"query": "the door opens", "span": [[10, 20.25]]},
    ],
}


def read(tmp_path: Path, *lines: object) -> list[GroundingExample | QuarantinedItem]:
    path = tmp_path / "train.jsonl"
    parts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(parts))
    return list(read_timelens(path, "train"))


def good(**changes: object) -> dict[str, object]:
    return {**GOOD, **changes}


def event(**changes: object) -> dict[str, object]:
    return good(events=[{**GOOD["events"][0], **changes}])


def test_one_example_an_event(tmp_path: Path) -> None:
    first, second = only(GroundingExample, read(tmp_path, GOOD))
    assert first == GroundingExample(
        example_id=make_example_id("a/b.mp4", "a dog barks", Span(1.5, 4.0)),
        video_path="a/b.mp4",
        duration=30.5,
        query="a dog barks",
        span=Span(1.5, 4.0),
        source="cosmo_cap",
        split="train",
    )
    assert isinstance(first.span.end, float)
    assert second.query == "the door opens" and second.span == Span(10.0, 20.25)


@pytest.mark.parametrize(
    ("line", "place", "reason"),
    [
        (b"{not json", "train.jsonl:1", "the line is not JSON"),
        (b"\xff\xfe", "train.jsonl:1", "not UTF-8"),
        (b"[" * 100_000, "train.jsonl:1", "beyond any annotation"),
        (b'{"duration": ' + b"9" * 5000 + b"}", "train.jsonl:1", "beyond any annotation"),
        ([1, 2], "train.jsonl:1", "not a JSON object"),
        ({**GOOD, "video_path": None}, "train.jsonl:1", "the row names no video"),
        ({k: v for k, v in GOOD.items() if k != "duration"}, "train.jsonl:1", "'duration' is miss"),
        (good(duration=0), "train.jsonl:1", "'duration' is 0 s"),
        (good(duration=float("nan")), "train.jsonl:1", "'duration' is not a finite number"),
        (good(duration=True), "train.jsonl:1", "'duration' is not a number"),
        (good(duration=10**400), "train.jsonl:1", "'duration' is not a finite number"),
        (good(events=[]), "train.jsonl:1", "'events' is empty"),
        (good(video_path="/etc/a.mp4"), "train.jsonl:1", "leads out of the videos folder"),
        (good(video_path="a/../../b.mp4"), "train.jsonl:1", "leads out of the videos folder"),
        (good(events=["x"]), "train.jsonl:1#0", "the event is not a JSON object"),
        (event(query="  "), "train.jsonl:1#0", "the query is empty"),
        (event(query="\ud800"), "train.jsonl:1#0", "no text"),
        (
            event(span=[[4, 4]]),
            "train.jsonl:1#0",
            "is empty: it ends at 4 s, not after its start at 4 s",
        ),
        (
            event(span=[[5, 4]]),
            "train.jsonl:1#0",
            "is reversed: it ends at 4 s, not after its start at 5 s",
        ),
        (
            event(span=[[-1, 4]]),
            "train.jsonl:1#0",
            "is negative: it lies outside of the video's 30.5 s",
        ),
        (event(span=[[1, 31.5]]), "train.jsonl:1#0", "outside of the video's 30.5 s"),
        (event(span=[[1, float("nan")]]), "train.jsonl:1#0", "not a finite number"),
        (event(span=[1, 4, 5]), "train.jsonl:1#0", "not of the form [start, end]"),
        (event(span=[[1, 2], [9, 40]]), "train.jsonl:1#0", "outside of the video's 30.5 s"),
        (event(span=[[1, 4, 5]]), "train.jsonl:1#0", "[[start, end], ...]"),
        (event(span=[["1", "4%"]]), "train.jsonl:1#0", "not a number of seconds ('4%')"),
        (event(span=[]), "train.jsonl:1#0", "the row has no span"),
        ({k: v for k, v in GOOD.items() if k != "source"}, "train.jsonl:1", "'source' is missing"),
        (good(video_path="C:\\data\\a.mp4"), "train.jsonl:1", "leads out of the videos folder"),
        (good(video_path="..\\a.mp4"), "train.jsonl:1", "leads out of the videos folder"),
        (good(video_start=30.0), "train.jsonl:1", "a cut-out of its video"),
    ],
)
def test_a_bad_annotation_is_quarantined_and_the_rest_goes_on(
    tmp_path: Path, line: str, place: str, reason: str
) -> None:
    bad, *rest = read(tmp_path, line, GOOD)
    assert isinstance(bad, QuarantinedItem)
    assert (bad.item_id, bad.stage, bad.policy_version) == (place, "import", None)
    assert reason in bad.reason and "\n" not in bad.reason
    assert [type(item) for item in rest] == [GroundingExample] * 2


def test_a_bad_event_does_not_take_its_neighbours_along(tmp_path: Path) -> None:
    bad = {"query": "", "span": [[1, 2]]}
    items = read(tmp_path, good(events=[GOOD["events"][0], bad, GOOD["events"][1]]))
    assert [type(item).__name__ for item in items] == [
        "GroundingExample", "QuarantinedItem", "GroundingExample",
    ]  # fmt: skip
    (bad_item,) = only(QuarantinedItem, items[1:2])
    assert bad_item.item_id == "train.jsonl:1#1" and bad_item.video_path == "a/b.mp4"


def test_the_same_annotation_twice_is_one_example(tmp_path: Path) -> None:
    items = read(tmp_path, GOOD, b"", good(source="again"))
    assert [type(item) for item in items[:2]] == [GroundingExample] * 2
    again = only(QuarantinedItem, items[2:])
    assert [item.item_id for item in again] == ["train.jsonl:3#0", "train.jsonl:3#1"]
    assert again[0].reason == "is the same annotation as train.jsonl:1#0"


def test_a_sentence_that_is_true_several_times_is_one_example_with_all_its_spans(
    tmp_path: Path,
) -> None:
    spans = [[9, 11], [1, 2], [9, 11]]
    rows = read(tmp_path, good(events=[{"query": "q", "span": spans}]))
    (item,) = only(GroundingExample, rows)
    assert item.span == Span(9.0, 11.0) and item.other_spans == ((1.0, 2.0),)
    assert item.spans == (Span(9.0, 11.0), Span(1.0, 2.0))
    rows = read(tmp_path, good(events=[{"query": "q", "span": [[9, 11]]}]))
    (alone,) = only(GroundingExample, rows)
    assert alone.example_id != item.example_id


def test_a_rounded_duration_is_tolerated_and_nothing_is_clipped(tmp_path: Path) -> None:
    end = 30.5 + END_TOLERANCE_SECONDS
    (item,) = only(GroundingExample, read(tmp_path, event(span=[[29, end]])))
    assert item.span == Span(29.0, end) and item.duration == 30.5


def test_a_run_reads_what_import_reads(tmp_path: Path) -> None:
    """One reader: times as text, a single pair, Windows' separators, an array."""
    (whole,) = read(tmp_path, event(query="q", span=[[1.5, 62.5]]) | {"duration": 70})
    forms = (
        event(query=" q ", span=["1.5", "1:02.5"]) | {"duration": "1:10", "video_path": "a\\b.mp4"},
        event(query="q", span="1.5 to 62.5") | {"duration": "70 s"},
        [event(query="q", span=[{"start": 1.5, "end": 62.5}]) | {"duration": 70}],
        {"dataset": "cosmo_cap", "video": "a/b.mp4", "duration": 70, "sentence": "q",
         "timestamp": [1.5, 62.5]},
    )  # fmt: skip
    assert [read(tmp_path, form) for form in forms] == [[whole]] * len(forms)


def test_blank_lines_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    line = json.dumps(GOOD).encode()
    assert len(read(tmp_path, b"\xef\xbb\xbf" + line + b"\r", b"  ", b"")) == 2


@pytest.mark.parametrize("name", ["nothing.jsonl", "."])
def test_an_unreadable_file_raises_at_once_and_says_what_to_do(tmp_path: Path, name: str) -> None:
    with pytest.raises(VideoOPDError, match=r"data\.eval"):
        read_timelens(tmp_path / name, "eval")


def json_values() -> st.SearchStrategy[object]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
        max_leaves=8,
    )


def annotated() -> st.SearchStrategy[object]:
    """Nearly right ones: each part is right, or anything."""
    number = st.integers(-3, 40) | st.floats() | json_values()
    span = st.lists(st.lists(number, min_size=2, max_size=2), min_size=1, max_size=2)
    one = st.fixed_dictionaries(
        {}, optional={"query": st.text() | json_values(), "span": span | json_values()}
    )
    return st.fixed_dictionaries(
        {},
        optional={
            "source": st.text() | json_values(),
            "video_path": st.text() | json_values(),
            "duration": st.floats(0, 50) | json_values(),
            "events": st.lists(one | json_values(), max_size=3) | json_values(),
        },
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(annotated() | json_values() | st.binary(max_size=20), max_size=4))
def test_whatever_is_in_the_file_each_example_is_valid_and_each_problem_has_a_reason(
    lines: list[str],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        items = read(Path(folder), *lines)
    ids = [item.example_id for item in items if isinstance(item, GroundingExample)]
    assert len(set(ids)) == len(ids)
    for item in items:
        if isinstance(item, QuarantinedItem):
            assert item.reason and item.item_id.startswith("train.jsonl:")
            continue
        assert item.query.strip() and item.video_path and item.source
        assert 0 <= item.span.start < item.span.end <= item.duration + END_TOLERANCE_SECONDS
        for start, end in item.other_spans:
            assert 0 <= start < end <= item.duration + END_TOLERANCE_SECONDS
        assert item.example_id == make_example_id(item.video_path, item.query, *item.spans)
