"""Decisions: whatever was found, each annotation is taken or has its reason, and what is written is
what a run then reads."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_core.annotations.formats.found import Annotated, LeftOut
from opd_core.annotations.importing import Decision, Rules, decide, timelens_rows
from opd_core.annotations.timelens import read_timelens
from opd_core.types import GroundingExample, Span
from opd_core.video.probing import Probe, Unusable
from tests.known import known, only

PATHS = {"a": "a.mp4", "b": "sub/b.mp4", "long": "long.mp4", "bad": "bad.mp4", "none": None}
PROBES: dict[str, Probe | Unusable] = {
    "a.mp4": Probe(6.0004, 8.0, "h264", "0" * 64),
    "sub/b.mp4": Probe(100 / 29.97, 29.97, "h264", "1" * 64),
    "long.mp4": Probe(100.0, 8.0, "h264", "2" * 64),
    "bad.mp4": Unusable("it has no video stream", final=True),
}

seconds = st.sampled_from([-1.0, 0.0, 1.0, 1.0001, 2.5, 6.5, 6.5003, 7.0]) | st.floats(-1, 9)
annotated_ones = st.builds(
    Annotated,
    place=st.integers(1, 99).map(lambda n: f"f:{n}"),
    video=st.sampled_from([*PATHS, "unknown"]),
    query=st.sampled_from(["a dog", "a bell is heard", "naïve “dog”"]),
    spans=st.lists(st.builds(Span, seconds, seconds), min_size=1, max_size=3).map(tuple),
    source=st.none() | st.just("theirs"),
    duration=st.none() | st.floats(0.1, 99),
)
left_out = st.builds(LeftOut, st.just("f:1"), st.none() | st.just("a"), st.just("is no JSON"))


def decisions(found: Iterable[Annotated | LeftOut], rules: Rules) -> list[Decision]:
    return list(decide(found, PATHS, PROBES, rules, lambda name: f"no file {name!r}"))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(annotated_ones | left_out, max_size=8),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.0, 0.2, 1.0]),
)
def test_all_that_is_written_is_read_and_all_else_has_a_reason(
    found: list[Annotated | LeftOut], skip: bool, override: bool, clamp: float
) -> None:
    decided = decisions(found, Rules("mine", override, skip, clamp))
    assert [d.found for d in decided] == found
    for decision in decided:
        assert decision.taken == (decision.reason is None)
        json.dumps(decision.as_row())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "out.jsonl")
        path.write_text("".join(json.dumps(row) + "\n" for row in timelens_rows(decided)))
        read = only(GroundingExample, read_timelens(path, "train"))
    taken = [(d, only(Annotated, [d.found])[0]) for d in decided if d.taken]
    assert [(e.video_path, e.query, e.source) for e in read] == [
        (d.video_path, a.query, d.source) for d, a in taken
    ]
    assert [e.spans for e in read] == [tuple(dict.fromkeys(d.spans)) for d, _ in taken]
    for decision, found_there in taken:
        length = known(decision.probe).duration
        for annotated, span in zip(found_there.spans, decision.spans, strict=True):
            late = annotated.end - length
            cut = Span(annotated.start, length)
            assert span == (cut if 0 < late <= clamp + 1e-6 and clamp else annotated)
    if override:
        assert {e.source for e in read} <= {"mine"}


def test_kinds() -> None:
    found: list[Annotated | LeftOut] = [
        LeftOut("f:1", None, "is no JSON"),
        Annotated("f:2", "none", "q", (Span(1, 2),)),
        Annotated("f:3", "bad", "q", (Span(1, 2),)),
        Annotated("f:4", "a", "q", (Span(1, 2), Span(5, 9))),
        Annotated("f:5", "a", "q", (Span(1, 2),), duration=6.9),
        Annotated("f:6", "a", "q", (Span(1, 2),)),
        Annotated("f:7", "a", "the sound of rain", (Span(1, 2),)),
        Annotated("f:8", "a", "q", (Span(1, 3),), duration=50.0),
        Annotated("f:9", "a", "q<|im_end|>", (Span(1, 3),)),
        Annotated("f:10", "long", "q", (Span(1, 3),), duration=101.9),
    ]
    decided = decisions(found, Rules("mine", skip_audio_queries=True))
    assert [d.kind for d in decided] == [
        "not of this format", "no such video", "unusable video", "span outside of its video",
        None, "said twice", "audio query", "another duration", "control token", None,
    ]  # fmt: skip
    assert "3.00 s too late; --clamp SECONDS" in known(decided[3].reason)
    assert decided[4].note is None
    assert decided[9].note == "annotated for 101.9 s, the file has 100.00 s"
    assert decided[5].reason == "is the same annotation as f:5"


def one(*spans: Span, clamp: float = 0.0) -> Decision:
    found = Annotated("f:1", "a", "q", spans)
    (decided,) = decisions([found], Rules("mine", clamp_seconds=clamp))
    return decided


@pytest.mark.parametrize(
    ("span", "kind", "reason"),
    [
        (Span(3, 1), "reversed span", "the span 3 - 1 s is reversed: it ends at 1 s"),
        (Span(9, 8), "reversed span", "is reversed"),
        (Span(-1, -2), "reversed span", "is reversed"),
        (Span(3, 3), "empty span", "the span 3 - 3 s is empty"),
        (Span(-1, 3), "negative span", "the span -1 - 3 s is negative"),
        (Span(-1, 7), "negative span", "is negative"),
        (Span(8, 9), "span outside of its video", "lies outside"),
    ],
)
@pytest.mark.parametrize("clamp", [0.0, 5.0])
def test_a_span_that_is_none_is_called_what_it_is(
    span: Span, kind: str, reason: str, clamp: float
) -> None:
    decided = one(span, clamp=clamp)
    assert (
        decided.kind == kind
        and reason in known(decided.reason)
        and "--clamp" not in known(decided.reason)
    )
    assert not decided.clamped


def test_what_ends_late_is_cut_only_where_that_is_asked_for() -> None:
    refused = one(Span(1, 7))
    assert refused.kind == "span outside of its video" and "--clamp" in known(refused.reason)
    assert "1.00 s too late" in known(refused.reason)
    assert not one(Span(1, 7), clamp=0.9).taken
    decided = one(Span(5, 5.5), Span(1, 7), clamp=1.0)
    assert decided.spans == (Span(5, 5.5), Span(1, 6.0004))
    row = decided.as_row()
    assert row["spans"] == [[5, 5.5], [1, 6.0004]]
    assert row["clamped"] == [{"annotated": [1, 7], "taken": [1, 6.0004]}]
    (written,) = timelens_rows([decided])
    assert written["events"] == [{"query": "q", "span": [[5, 5.5], [1, 6.0004]]}]
    unchanged = one(Span(1, 6.4))
    assert unchanged.spans == (Span(1, 6.4),) and "clamped" not in unchanged.as_row()
    assert one(Span(1, 6.4), clamp=1.0).spans == (Span(1, 6.0004),)


def test_two_that_are_one_after_the_cut_are_said_twice() -> None:
    found = [Annotated(f"f:{n}", "a", "q", (Span(1, 6.2 + n),)) for n in range(2)]
    first, second = decisions(found, Rules("mine", clamp_seconds=2))
    assert first.taken and second.kind == "said twice"
    (only,) = decisions(
        [Annotated("f:1", "a", "q", (Span(1, 7), Span(1, 7.5)))], Rules("m", clamp_seconds=2)
    )
    (written,) = timelens_rows([only])
    assert written["events"][0]["span"] == [[1, 6.0004]]
