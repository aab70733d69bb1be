"""Each curriculum against its own definition: counts, ties, draws, and any order of rows."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_core.config.sections import FocusSection
from opd_core.focus.drawing import gaussian, in_drawn_order, uniform_number
from opd_core.focus.select import (
    candidates,
    known_unreliable,
    needs_predictions,
    needs_scores,
    sampling_k1s,
    select,
)
from tests.known import largest

NAN = math.nan


def frame(**columns: list[Any]) -> pl.LazyFrame:
    kinds = {"policy_version": pl.Int64, "student_iou": pl.Float64, "iou": pl.Float64,
             "reverse_kl": pl.Float64}  # fmt: skip
    return pl.LazyFrame(columns, schema={k: kinds.get(k, pl.String) for k in columns})


def round_of(
    students: Mapping[str, float | None], teacher: float = 1.0
) -> tuple[pl.LazyFrame, pl.LazyFrame]:
    """One rollout an example, whose ids are its name and `name0`."""
    names = list(students)
    rollouts = frame(
        rollout_id=[f"{n}0" for n in names],
        example_id=names,
        policy_version=[0] * len(names),
        student_iou=list(students.values()),
    )
    return rollouts, frame(example_id=names, iou=[teacher] * len(names))


def taken(
    rollouts: pl.LazyFrame,
    predictions: pl.LazyFrame,
    focus: FocusSection,
    seed: int = 0,
    kls: pl.LazyFrame | None = None,
) -> list[str]:
    chosen = select(rollouts, predictions, focus, seed, kls).filter("selected").collect()
    return sorted(chosen["example_id"].unique())


def ladder(count: int) -> dict[str, float]:
    """Examples a, b, ... of falling disagreement with a teacher of IoU 1."""
    return {chr(97 + i): i / count for i in range(count)}


# --- TVDF's selections ------------------------------------------------------------------------


def test_stride_takes_every_nth_of_the_ranking() -> None:
    for count, top_k, expected in ((10, 5, "acegi"), (10, 4, "acfh"), (3, 5, "abc"), (4, 1, "a")):
        focus = FocusSection(selection="stride", top_k=top_k)
        assert "".join(taken(*round_of(ladder(count)), focus)) == expected


def test_buckets_give_the_same_number_each_from_the_top() -> None:
    focus = FocusSection(selection="buckets", buckets=5, top_k=5)
    chosen = select(*round_of(ladder(10)), focus).collect()
    assert chosen.filter("selected")["example_id"].to_list() == list("acegi")
    assert chosen["pool"].to_list() == [f"bucket {i // 2}" for i in range(10)]
    # What cannot be shared out goes to the upper buckets; nothing of it is lost.
    for count, top_k, expected in (
        (12, 7, "abdegik"),
        (7, 7, "abcdefg"),
        (3, 2, "ab"),
        (2, 9, "ab"),
    ):
        focus = FocusSection(selection="buckets", buckets=5, top_k=top_k)
        assert "".join(taken(*round_of(ladder(count)), focus)) == expected


def test_gaussian_weights_are_the_formula_and_the_draw_needs_its_seed() -> None:
    students = {"a": 0.0, "b": 0.1, "c": 0.55, "d": 1.0}
    focus = FocusSection(selection="gaussian", top_k=2)
    chosen = select(*round_of(students), focus, seed=1).collect().sort("example_id")
    expected = [math.exp(-((1.0 - v - 0.9) ** 2) / (2 * 0.2**2)) for v in students.values()]
    assert chosen["weight"].to_list() == pytest.approx(expected)
    assert sorted(chosen["rank"].to_list()) == [0, 1, 2, 3]
    draws = {tuple(taken(*round_of(students), focus, seed)) for seed in range(40)}
    assert len(draws) > 1, "another seed, another draw"


def test_disagreement_is_scaled_within_the_round_and_may_be_all_the_same() -> None:
    focus = FocusSection(selection="gaussian", top_k=1)
    halved = select(*round_of({"a": 0.5, "b": 0.75}), focus).collect().sort("example_id")
    ends = [math.exp(-((x - 0.9) ** 2) / (2 * 0.2**2)) for x in (1.0, 0.0)]
    assert halved["weight"].to_list() == pytest.approx(ends)
    same = select(*round_of({"a": 0.5, "b": 0.5}), focus).collect()
    assert same["weight"].to_list() == pytest.approx([ends[0]] * 2)


def test_a_weighted_draw_has_the_probabilities_of_draws_one_after_the_other() -> None:
    """All orders of four units over 4,000 seeds, against their exact probabilities."""
    weights = {"a": 1.0, "b": 0.5, "c": 0.25, "d": 0.05}
    units = pl.DataFrame({"unit": list(weights), "w": [math.log(w) for w in weights.values()]})
    seeds = 4000
    counts = Counter(
        tuple(in_drawn_order(units, pl.col("w"), seed)["unit"]) for seed in range(seeds)
    )
    total = 0.0
    for order in permutations(weights):
        left, probability = sum(weights.values()), 1.0
        for unit in order:
            probability *= weights[unit] / left
            left -= weights[unit]
        total += probability
        deviation = math.sqrt(probability * (1 - probability) / seeds)
        assert abs(counts[order] / seeds - probability) <= 4.5 * deviation, order
    assert total == pytest.approx(1.0)


def test_uniform_numbers_are_uniform_and_inside() -> None:
    numbers = [uniform_number(seed, str(unit)) for seed in range(50) for unit in range(50)]
    assert min(numbers) > 0.0 and max(numbers) < 1.0 and len(set(numbers)) == len(numbers)
    assert abs(statistics.fmean(numbers) - 0.5) < 4 * math.sqrt(1 / 12 / len(numbers))
    assert uniform_number(3, "a") == uniform_number(3, "a") != uniform_number(4, "a")


def test_a_weight_too_small_for_a_float_is_still_drawn_last() -> None:
    units = pl.DataFrame({"unit": ["far", "near", "further"], "x": [50.0, 0.0, 60.0]})
    drawn = in_drawn_order(units, gaussian(pl.col("x"), 0.0, 1.0), seed=0)
    assert drawn["unit"].to_list() == ["near", "far", "further"]
    assert drawn["weight"].to_list()[0] == 1.0


# --- disagreement by reverse KL ---------------------------------------------------------------


def test_mean_reverse_kl_is_over_the_tokens() -> None:
    rollouts = pl.LazyFrame(
        {"rollout_id": ["a", "b", "c"], "sampling_logprobs": [[-1.0, -2.0], [-0.5], None]},
        schema_overrides={"sampling_logprobs": pl.List(pl.Float32)},
    )
    scores = pl.LazyFrame(
        {"rollout_id": ["a", "c"], "teacher_logprobs": [[-1.5, -4.0], [-1.0]]},
        schema_overrides={"teacher_logprobs": pl.List(pl.Float32)},
    )
    found = sampling_k1s(rollouts, scores).collect().sort("rollout_id")
    assert found.to_dict(as_series=False) == {"rollout_id": ["a", "c"], "reverse_kl": [1.25, None]}


def test_by_reverse_kl_the_ious_do_not_rank() -> None:
    rollouts, predictions = round_of({"a": 0.0, "b": 0.5, "c": 0.9, "d": 0.2})
    kls = frame(rollout_id=["a0", "b0", "c0", "d0"], reverse_kl=[0.1, 0.2, 0.3, NAN])
    focus = FocusSection(disagreement="reverse_kl", top_k=2)
    assert taken(rollouts, predictions, focus, kls=kls) == ["b", "c"]
    chosen = select(rollouts, predictions, focus, 0, kls).collect()
    assert chosen["reason"].to_list()[3] == "no teacher score"
    assert chosen["disagreement"].to_list() == pytest.approx([1.0, 0.5, 0.1, 0.8])
    assert candidates(rollouts, predictions, focus) == ["a0", "b0", "c0", "d0"]
    with pytest.raises(ValueError, match="takes the k1 estimates"):
        select(rollouts, predictions, focus)


# --- SCC --------------------------------------------------------------------------------------


def test_scc_takes_a_frontier_by_the_gap_and_anchors_by_seed() -> None:
    students = {"a": 0.1, "b": 0.3, "c": 0.6, "d": 0.7, "e": 0.8, "f": 0.9, "g": 1.0}
    focus = FocusSection(curriculum="scc", frontier=2, anchors=2)
    assert focus.min_teacher_iou == 0.7, "its own bound, unless another is given"
    assert FocusSection(curriculum="scc", min_teacher_iou=0.5).min_teacher_iou == 0.5
    chosen = select(*round_of(students), focus, 5).collect()
    picked = chosen.filter("selected")
    assert picked.filter(pl.col("pool") == "frontier")["example_id"].to_list() == ["a", "b"]
    anchors = picked.filter(pl.col("pool") == "anchor")["example_id"].to_list()
    assert len(anchors) == 2 and set(anchors) <= set("defg"), "the threshold itself is known"
    reasons = dict(chosen.select("example_id", "reason").iter_rows())
    assert reasons["c"] == "disagreement outside the frontier"
    assert {reasons[e] for e in set("defg") - set(anchors)} == {"the student has it"}
    assert candidates(*round_of(students), focus, 5) == sorted(picked["rollout_id"])
    none = FocusSection(curriculum="scc", frontier=9, anchors=0)
    assert taken(*round_of(students), none) == ["a", "b", "c"]


def test_every_anchor_is_as_likely() -> None:
    students = dict.fromkeys("abcde", 0.9)
    focus = FocusSection(curriculum="scc", anchors=2)
    counts = Counter(e for seed in range(400) for e in taken(*round_of(students), focus, seed))
    for name in students:
        assert abs(counts[name] / 400 - 0.4) < 4 * math.sqrt(0.4 * 0.6 / 400)


def test_scc_by_reverse_kl_scores_the_frontier_and_its_anchors_only() -> None:
    students = {"a": 0.1, "b": 0.3, "c": 0.6, "d": 0.8, "e": 0.9, "f": 1.0}
    rollouts, predictions = round_of(students)
    focus = FocusSection(curriculum="scc", frontier=1, anchors=1, disagreement="reverse_kl")
    wanted = candidates(rollouts, predictions, focus, 3)
    assert wanted[:3] == ["a0", "b0", "c0"] and len(wanted) == 4
    kls = frame(rollout_id=wanted, reverse_kl=[0.1, 0.3, 0.2, 0.0])
    assert taken(rollouts, predictions, focus, 3, kls) == ["b", wanted[3][0]]


# --- TimeLens and uniform ---------------------------------------------------------------------


def test_timelens_weighs_the_students_iou_and_reads_no_teacher() -> None:
    rollouts, _ = round_of({"a": 0.05, "b": 0.25, "c": 1.0, "d": NAN})
    nobody = frame(example_id=[], iou=[])
    focus = FocusSection(curriculum="timelens", top_k=2)
    chosen = select(rollouts, nobody, focus).collect()
    weights = [math.exp(-((v - 0.05) ** 2) / (2 * 0.2**2)) for v in (0.05, 0.25, 1.0)]
    assert chosen["weight"].to_list()[:3] == pytest.approx(weights)
    assert chosen["reason"].to_list()[3] == "student unknown"
    counts = Counter(e for seed in range(300) for e in taken(rollouts, nobody, focus, seed))
    assert counts["a"] + counts["b"] > 590 and counts["c"] < 10


def test_what_each_curriculum_needs() -> None:
    needs = {
        name: (needs_predictions(f), needs_scores(f))
        for name in ("tvdf", "scc", "timelens", "uniform")
        for f in [FocusSection(curriculum=name, disagreement="reverse_kl")]
    }
    assert needs == {
        "tvdf": (True, True), "scc": (True, True), "timelens": (False, False),
        "uniform": (False, False),
    }  # fmt: skip
    assert not needs_scores(FocusSection())
    unreliable = frame(example_id=["a"], iou=[0.0])
    assert known_unreliable(unreliable, FocusSection(curriculum="timelens")) == []


# --- of all -----------------------------------------------------------------------------------

iou = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.floats(0, 1), st.just(NAN),
                st.none())  # fmt: skip
KINDS = [
    {"curriculum": "tvdf", "selection": selection, "disagreement": disagreement}
    for selection in ("top_k", "stride", "buckets", "gaussian")
    for disagreement in ("iou", "reverse_kl")
] + [
    {"curriculum": "scc", "disagreement": "iou"},
    {"curriculum": "scc", "disagreement": "reverse_kl"},
    {"curriculum": "timelens"},
    {"curriculum": "uniform"},
]


@settings(max_examples=80, deadline=None)
@given(data=st.data(), kind=st.sampled_from(KINDS), unit=st.sampled_from(["example", "rollout"]))
def test_properties_of_any_curriculum(data: st.DataObject, kind: dict[str, Any], unit: Any) -> None:
    rows = data.draw(st.lists(st.tuples(st.sampled_from("abcdef"), iou, iou), max_size=16))
    teachers = data.draw(st.dictionaries(st.sampled_from("abcdef"), iou))
    top_k = data.draw(st.integers(1, 8))
    focus = FocusSection(
        **kind, unit=unit, top_k=top_k, frontier=top_k, anchors=2, min_teacher_iou=0.25,
        max_student_iou=0.5, buckets=3,
    )  # fmt: skip
    ids = [f"r{i:02}" for i in range(len(rows))]

    def decided(order: Sequence[int]) -> tuple[pl.DataFrame, list[str]]:
        rollouts = frame(
            rollout_id=[ids[i] for i in order],
            example_id=[rows[i][0] for i in order],
            policy_version=[0] * len(order),
            student_iou=[rows[i][1] for i in order],
        )
        predictions = frame(example_id=list(teachers), iou=list(teachers.values()))
        worth = candidates(rollouts, predictions, focus, 9)
        known = [i for i in order if not needs_scores(focus) or ids[i] in worth]
        kls = frame(rollout_id=[ids[i] for i in known], reverse_kl=[rows[i][2] for i in known])
        return select(rollouts, predictions, focus, 9, kls).collect(), worth

    chosen, worth = decided(range(len(rows)))
    assert chosen["rollout_id"].to_list() == ids, "every rollout once, in the order it came"
    shuffled, again = decided(data.draw(st.permutations(range(len(rows)))))
    assert worth == again
    for name in ("selected", "reason", "rank", "pool", "weight"):
        assert shuffled.sort("rollout_id")[name].to_list() == chosen[name].to_list()
    picked = chosen.filter("selected")
    name = "example_id" if unit == "example" else "rollout_id"
    assert set(picked["rollout_id"]) <= set(worth), "nothing is taken that was not to be scored"
    assert (chosen["selected"] == (chosen["reason"] == "selected")).all()
    for column in ("teacher_iou", "student_iou", "disagreement", "reverse_kl", "weight"):
        assert not chosen[column].is_nan().any(), "absent is null"
    if focus.curriculum == "uniform":
        assert len(picked) == len(rows)
        return
    assert picked["student_iou"].null_count() == 0
    faults = {"teacher unknown", "teacher unreliable", "student unknown", "no teacher score"}
    eligible = chosen.filter(~pl.col("reason").is_in(faults))
    if focus.curriculum == "scc":
        known = pl.col("student_iou") >= 0.5
        for pool, most in ((eligible.filter(~known), top_k), (eligible.filter(known), 2)):
            count = pool.filter("selected")[name].n_unique()
            assert count == min(most, pool[name].n_unique())
    else:
        assert picked[name].n_unique() == min(top_k, eligible[name].n_unique())
    if needs_predictions(focus):
        assert (picked["teacher_iou"] >= 0.25).all() and picked["teacher_iou"].null_count() == 0
    if focus.curriculum == "tvdf" and focus.selection == "top_k":
        measure = "reverse_kl" if needs_scores(focus) else "disagreement"
        left = eligible.filter(~pl.col("selected"))
        if len(left):
            assert min(picked[measure]) >= largest(left[measure])
