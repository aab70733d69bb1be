"""TVDF on hand-made frames, and the draw."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_core.config.sections import FocusSection
from opd_core.focus.select import by_video, candidates, draw_examples, known_unreliable, select
from opd_core.types import GroundingExample, Span
from tests.known import largest

NAN = math.nan


def rollouts(*rows: tuple[str, str, float | None]) -> pl.LazyFrame:
    ids, examples, ious = zip(*rows, strict=True)
    return pl.LazyFrame(
        {
            "rollout_id": ids,
            "example_id": examples,
            "policy_version": [0] * len(rows),
            "student_iou": ious,
        },
        schema_overrides={"student_iou": pl.Float64},
    )


def predictions(**ious: Sequence[float | None]) -> pl.LazyFrame:
    pairs = [(example, iou) for example, values in ious.items() for iou in values]
    return pl.LazyFrame(
        {"example_id": [e for e, _ in pairs], "iou": [i for _, i in pairs]},
        schema={"example_id": pl.String, "iou": pl.Float64},
    )


def decide(
    frame: pl.LazyFrame, teacher: pl.LazyFrame, **settings_: Any
) -> dict[str, tuple[bool, str]]:
    chosen = select(frame, teacher, FocusSection(**settings_)).collect()
    return {r["rollout_id"]: (r["selected"], r["reason"]) for r in chosen.iter_rows(named=True)}


def test_takes_the_examples_with_the_largest_disagreement_with_all_their_rollouts() -> None:
    frame = rollouts(("a0", "a", 0.1), ("a1", "a", 0.3), ("b0", "b", 0.5), ("b1", "b", 0.7))
    teacher = predictions(a=[0.8, 0.6], b=[0.9, 0.9])
    chosen = select(frame, teacher, FocusSection(top_k=1)).collect().sort("rollout_id")
    assert chosen["selected"].to_list() == [True, True, False, False]
    assert chosen["teacher_iou"].to_list() == pytest.approx([0.7, 0.7, 0.9, 0.9])
    assert chosen["student_iou"].to_list() == pytest.approx([0.2, 0.2, 0.6, 0.6])
    assert chosen["disagreement"].to_list() == pytest.approx([0.5, 0.5, 0.3, 0.3])
    assert chosen["rank"].to_list() == [0, 0, 1, 1]
    assert chosen["reason"].to_list()[2] == "disagreement outside top k"


def test_by_single_rollout() -> None:
    frame = rollouts(("a0", "a", 0.0), ("a1", "a", 0.5), ("b0", "b", 0.25), ("b1", "b", 1.0))
    teacher = predictions(a=[0.75], b=[0.75])
    chosen = decide(frame, teacher, top_k=2, unit="rollout")
    assert [k for k, (taken, _) in chosen.items() if taken] == ["a0", "b0"]


def test_unreliable_unknown_and_nan_teachers_are_never_selected() -> None:
    frame = rollouts(*[(f"{e}0", e, 0.0) for e in "abcd"])
    teacher = predictions(a=[0.9], b=[0.1, 0.2], c=[NAN])
    chosen = decide(frame, teacher, min_teacher_iou=0.3, top_k=10)
    assert chosen == {
        "a0": (True, "selected"),
        "b0": (False, "teacher unreliable"),
        "c0": (False, "teacher unknown"),
        "d0": (False, "teacher unknown"),
    }


def test_the_bound_itself_is_reliable() -> None:
    frame = rollouts(("a0", "a", 0.0))
    assert decide(frame, predictions(a=[0.5]), min_teacher_iou=0.5)["a0"][0]


def test_an_unparsable_answer_counts_as_iou_0() -> None:
    """The stages give 0.0 to an answer without a span: it lowers the mean and is taken first."""
    frame = rollouts(("a0", "a", 0.0), ("a1", "a", 0.8), ("b0", "b", 0.5), ("b1", "b", 0.5))
    chosen = decide(frame, predictions(a=[0.9], b=[0.9]), top_k=1)
    assert chosen["a0"][0] and not chosen["b0"][0]


def test_nan_and_null_of_the_student_are_never_selected() -> None:
    frame = rollouts(("a0", "a", NAN), ("b0", "b", None), ("c0", "c", 0.1))
    chosen = decide(frame, predictions(a=[0.9], b=[0.9], c=[0.9]), top_k=10)
    assert chosen["a0"] == (False, "student unknown")
    assert chosen["b0"] == (False, "student unknown")
    assert chosen["c0"][0]


def test_ties_go_to_the_smaller_id_whatever_the_order_of_rows() -> None:
    rows = [(f"{e}0", e, 0.25) for e in "dacb"]
    teacher = predictions(**{e: [0.75] for e in "abcd"})
    for order in (rows, rows[::-1]):
        chosen = decide(rollouts(*order), teacher, top_k=2)
        assert sorted(k for k, (taken, _) in chosen.items() if taken) == ["a0", "b0"]


def test_top_k_larger_than_the_rows_takes_all_reliable_ones() -> None:
    frame = rollouts(("a0", "a", 0.1), ("b0", "b", 0.1))
    chosen = decide(frame, predictions(a=[0.9], b=[0.1]), top_k=1000)
    assert [chosen["a0"][0], chosen["b0"][0]] == [True, False]


def test_a_student_better_than_the_teacher_ranks_last_but_counts() -> None:
    frame = rollouts(("a0", "a", 1.0), ("b0", "b", 0.5))
    chosen = select(frame, predictions(a=[0.5], b=[0.6]), FocusSection(top_k=2)).collect()
    assert dict(chosen.select("rollout_id", "rank").iter_rows()) == {"a0": 1, "b0": 0}


def test_uniform_takes_everything() -> None:
    frame = rollouts(("a0", "a", 0.1), ("b0", "b", NAN))
    assert all(taken for taken, _ in decide(frame, predictions(), curriculum="uniform").values())


def test_no_rows_are_no_selection() -> None:
    empty = rollouts(("a0", "a", 0.1)).filter(pl.lit(False))
    assert select(empty, predictions(), FocusSection()).collect().is_empty()


iou = st.one_of(st.floats(0, 1), st.just(NAN))


@settings(max_examples=80, deadline=None)
@given(
    student=st.lists(st.tuples(st.sampled_from("abcdef"), iou), min_size=1, max_size=20),
    teacher=st.dictionaries(st.sampled_from("abcdef"), st.lists(iou, min_size=1, max_size=3)),
    top_k=st.integers(1, 8),
    unit=st.sampled_from(["example", "rollout"]),
    bound=st.floats(0, 1),
)
def test_properties_of_any_selection(
    student: list[tuple[str, float]],
    teacher: dict[str, list[float]],
    top_k: int,
    unit: Literal["example", "rollout"],
    bound: float,
) -> None:
    frame = rollouts(*[(f"r{i:02}", e, v) for i, (e, v) in enumerate(student)])
    focus = FocusSection(top_k=top_k, unit=unit, min_teacher_iou=bound)
    chosen = select(frame, predictions(**teacher), focus).collect()
    assert chosen["rollout_id"].to_list() == [f"r{i:02}" for i in range(len(student))]
    taken = chosen.filter("selected")
    name = "example_id" if unit == "example" else "rollout_id"
    assert taken[name].n_unique() <= top_k
    assert (taken["teacher_iou"] >= bound).all()
    assert taken["disagreement"].is_finite().all()
    assert not chosen["disagreement"].is_nan().any(), "absent is null"
    left = chosen.filter(pl.col("reason") == "disagreement outside top k")
    if len(left):
        assert min(taken["disagreement"]) >= largest(left["disagreement"])
    if unit == "example":
        assert not set(taken["example_id"]) & set(chosen.filter(~pl.col("selected"))["example_id"])
    assert candidates(frame, predictions(**teacher), focus) == taken["rollout_id"].to_list()


def test_known_unreliable() -> None:
    teacher = predictions(a=[0.9], b=[0.1], c=[NAN])
    assert known_unreliable(teacher, FocusSection(min_teacher_iou=0.3)) == ["b", "c"]
    assert known_unreliable(teacher, FocusSection(curriculum="uniform")) == []


def example(video: str, index: int) -> GroundingExample:
    span = Span(float(index), index + 1.0)
    return GroundingExample(f"{video}{index}", f"{video}.mp4", 12.0, "q", span, "s", "train")


def test_draw_keeps_a_videos_sentences_together_and_ignores_the_order_of_its_input() -> None:
    examples = [example(v, i) for i in range(3) for v in "abcdef"]
    drawn = draw_examples(examples, 10, 2, seed=1)
    assert len(drawn) == 10
    videos = [e.video_path for e in drawn]
    assert len(set(videos)) == sum(a != b for a, b in pairwise(videos)) + 1
    assert max(videos.count(v) for v in videos) == 2
    assert drawn == draw_examples(examples[::-1], 10, 2, seed=1)
    assert drawn != draw_examples(examples, 10, 2, seed=2)


def test_draw_sees_all_videos_before_any_twice() -> None:
    examples = [example(v, i) for i in range(2) for v in "abcdef"]
    times: dict[str, int] = {}
    for seed in range(3):
        for drawn in draw_examples(examples, 4, 8, seed, times):
            times[drawn.example_id] = times.get(drawn.example_id, 0) + 1
    assert times == {e.example_id: 1 for e in examples}


def test_draw_of_more_than_there_is_takes_all_once() -> None:
    examples = [example(v, i) for i in range(3) for v in "abc"]
    assert by_video(draw_examples(examples, 100, 8, seed=0)) == by_video(examples)
