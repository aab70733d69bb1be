"""Verdicts on made-up curves: each claim holds, fails and stays open where it should."""

from __future__ import annotations

from typing import Any

import pytest

from flows.study.claims import FAILS, HOLDS, OPEN, Claim, judge_claims
from flows.study.curves import Result as ArmResult
from flows.study.plan import ClaimsSection
from tests.flows.study.study_points import result

PARTS = ClaimsSection(
    teacher="teacher", opd="opd", opd_one="one", grpo="grpo", tvdf="opd", without_tvdf="all"
)
NOISE = (0.0, 0.004, -0.003, 0.002, -0.002)


def arm(name: str, *curve: Any) -> list[ArmResult]:
    """Five seeds around a curve; the noise is the seed's, and differs between arms."""
    shift = sum(map(ord, name)) % 5
    noise = NOISE[shift:] + NOISE[:shift]
    return [
        result(name, seed, *((cost, miou + noise[seed]) for cost, miou in curve))
        for seed in range(5)
    ]


def claims(**arms: Any) -> dict[str, Claim]:
    return {c.name: c for c in judge_claims(arms, PARTS)}


def test_opd_above_grpo() -> None:
    name = "OPD above GRPO"
    grpo = arm("grpo", (0, 0.4), (100, 0.5))
    better, worse, alike = (arm("opd", (0, 0.4), (100, x)) for x in (0.6, 0.45, 0.5))
    assert claims(opd=better, grpo=grpo)[name].verdict == HOLDS
    assert claims(opd=worse, grpo=grpo)[name].verdict == FAILS
    assert claims(opd=alike, grpo=grpo)[name].verdict == OPEN
    found = claims(opd=better, grpo=grpo)[name].comparisons
    assert [c.what.split(" of ")[0] for c in found] == ["mIoU", "R1@0.7"]
    assert found[0].value == pytest.approx(0.1) and found[1].value == pytest.approx(0.05)


def test_variants_stand_beside_the_claims_own_arms() -> None:
    parts = PARTS.model_copy(update={"variants": ("forward",)})
    grpo = arm("grpo", (0, 0.4), (100, 0.5))
    arms = {"opd": arm("opd", (0, 0.4), (100, 0.45)), "grpo": grpo}
    arms["forward"] = arm("forward", (0, 0.4), (20, 0.6))
    arms["teacher"] = arm("teacher", (0, 0.7))
    found = {c.name: c for c in judge_claims(arms, parts)}
    for name, count in (("OPD above GRPO", 4), ("Faster convergence", 4)):
        claim = found[name]
        assert claim.verdict == FAILS, "the claim's own arm decides"
        assert len(claim.comparisons) == count
        assert claim.comparisons[-1].verdict == HOLDS and "`forward`" in claim.comparisons[-1].what
    at_equal_cpu = [c for c in found["Faster convergence"].comparisons if c.kind == "difference"]
    assert ["at 20 CPU seconds" in c.what for c in at_equal_cpu] == [False, True]
    assert at_equal_cpu[1].value == pytest.approx(0.6 - 0.42), "GRPO's curve is linear"
    assert [c.verdict for c in found["Student beyond teacher"].comparisons] == [FAILS, FAILS]
    assert len(found["A fifth of GRPO's time per step"].comparisons) == 2


def test_a_single_seed_settles_nothing() -> None:
    found = claims(
        opd=[result("opd", 0, (0, 0), (1, 0.9))], grpo=[result("grpo", 0, (0, 0), (1, 0))]
    )
    assert {c.verdict for c in found.values()} == {OPEN}


def test_time_per_step() -> None:
    name = "A fifth of GRPO's time per step"
    grpo = arm("grpo", (0, 0.4), (100, 0.5))
    for cost, verdict in ((15, HOLDS), (50, FAILS)):
        (own,) = claims(one=arm("one", (0, 0.4), (cost, 0.5)), grpo=grpo)[name].comparisons
        assert own.value == pytest.approx(cost / 100) and own.verdict == verdict


def test_faster_convergence() -> None:
    name = "Faster convergence"
    grpo = arm("grpo", (0, 0.4), (50, 0.45), (100, 0.5), (150, 0.48))  # its best costs 100
    fast = claims(opd=arm("opd", (0, 0.4), (20, 0.6)), grpo=grpo)[name]
    assert fast.verdict == HOLDS
    assert fast.comparisons[0].value == pytest.approx(0.1, abs=0.01)
    slow = claims(opd=arm("opd", (0, 0.4), (160, 0.6)), grpo=grpo)[name]
    assert slow.verdict == FAILS
    assert slow.comparisons[0].value == pytest.approx(0.8, abs=0.05)
    never = claims(opd=arm("opd", (0, 0.4), (160, 0.45)), grpo=grpo)[name]
    assert never.verdict == FAILS and never.comparisons[0].value is None


def test_nothing_is_faster_than_what_never_rose() -> None:
    grpo = arm("grpo", (0, 0.4), (50, 0.3))
    found = claims(opd=arm("opd", (0, 0.4), (20, 0.6)), grpo=grpo)["Faster convergence"]
    assert found.verdict == OPEN and found.comparisons[0].value is None


def test_tvdf_at_equal_rounds_and_at_equal_cost() -> None:
    ours, others = arm("opd", (0, 0.4), (50, 0.5)), arm("all", (0, 0.4), (100, 0.52))
    found = claims(opd=ours, all=others)["TVDF helps"]
    final, at_cost = found.comparisons
    assert final.verdict == FAILS and final.value == pytest.approx(-0.02)
    assert "at 50 CPU seconds" in at_cost.what
    assert at_cost.verdict == HOLDS and at_cost.value == pytest.approx(0.04)
    assert found.verdict == FAILS  # of the first, which is the claim


def test_student_beyond_teacher() -> None:
    teacher = arm("teacher", (0, 0.85))
    found = claims(opd=arm("opd", (0, 0.4), (50, 0.6)), teacher=teacher)
    assert found["Student beyond teacher"].verdict == FAILS


def test_the_tree_at_equal_cost() -> None:
    one, tree = arm("one", (0, 0.4), (50, 0.5)), arm("opd", (0, 0.4), (100, 0.7))
    (own,) = claims(opd=tree, one=one)["The 8-rollout tree beats 1 rollout"].comparisons
    assert own.value == pytest.approx(0.05) and own.verdict == HOLDS


def test_a_claim_without_its_arms_is_left_out() -> None:
    assert list(claims(opd=arm("opd", (0, 0), (1, 1)), one=arm("one", (0, 0), (1, 1)))) == [
        "The 8-rollout tree beats 1 rollout"
    ]
