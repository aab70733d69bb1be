"""Verdicts on made-up curves: each claim holds, fails and stays open where it should."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from flows.study.claims import FAILS, HOLDS, OPEN, Claim, ClaimSection, judge_claims
from flows.study.curves import Point
from flows.study.curves import Result as ArmResult
from flows.study.plan import Plan, load_study
from opd_core.types import VideoOPDError
from tests.flows.study.study_points import result
from tests.flows.study.test_study_plan import STUDY

ROOT = Path(__file__).parents[3]
CLAIMS = """
[[claims]]
name = "OPD above GRPO"
statement = "it ends above"
arms = ["opd", "forward"]
against = ["grpo"]
rows = [{ metric = "miou" }, { metric = "r1_70" }]
[[claims]]
name = "A fifth of GRPO's time per step"
statement = "a step takes a fifth"
arms = ["one", "opd", "forward"]
against = ["grpo"]
rows = [{ measure = "cost_per_step", bound = 0.2 }]
[[claims]]
name = "Faster convergence"
statement = "it is there in a third"
arms = ["opd", "forward"]
against = ["grpo"]
rows = [{ measure = "cost_to_best", bound = 0.333 }, { at_equal = "cpu_seconds" }]
[[claims]]
name = "TVDF helps"
statement = "it ends above that without"
arms = ["opd"]
against = ["all"]
rows = [{}, { at_equal = "cpu_seconds" }]
[[claims]]
name = "Student beyond teacher"
statement = "it ends above its teacher"
arms = ["opd", "forward"]
against = ["teacher"]
[[claims]]
name = "The 8-rollout tree beats 1 rollout"
statement = "it is higher at the same time"
arms = ["opd"]
against = ["one"]
rows = [{ at_equal = "cpu_seconds" }]
"""
SECTIONS = TypeAdapter(list[ClaimSection]).validate_python(tomllib.loads(CLAIMS)["claims"])
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
    return {c.name: c for c in judge_claims(arms, SECTIONS)}


def test_opd_above_grpo() -> None:
    name = "OPD above GRPO"
    grpo = arm("grpo", (0, 0.4), (100, 0.5))
    better, worse, alike = (arm("opd", (0, 0.4), (100, x)) for x in (0.6, 0.45, 0.5))
    assert claims(opd=better, grpo=grpo)[name].verdict == HOLDS
    assert claims(opd=worse, grpo=grpo)[name].verdict == FAILS
    assert claims(opd=alike, grpo=grpo)[name].verdict == OPEN
    judged = claims(opd=better, grpo=grpo)[name].comparisons
    assert [c.what.split(" of ")[0] for c in judged] == ["mIoU", "R1@0.7"]
    assert judged[0].value == pytest.approx(0.1) and judged[1].value == pytest.approx(0.05)


def test_other_arms_stand_beside_the_claims_own() -> None:
    judged = claims(
        opd=arm("opd", (0, 0.4), (100, 0.45)),
        grpo=arm("grpo", (0, 0.4), (100, 0.5)),
        forward=arm("forward", (0, 0.4), (20, 0.6)),
        teacher=arm("teacher", (0, 0.7)),
    )
    for name, count in (("OPD above GRPO", 4), ("Faster convergence", 4)):
        claim = judged[name]
        assert claim.verdict == FAILS, "the claim's own arm decides"
        assert len(claim.comparisons) == count
        assert claim.comparisons[-1].verdict == HOLDS and "`forward`" in claim.comparisons[-1].what
    at_equal_cpu = [c for c in judged["Faster convergence"].comparisons if c.kind == "difference"]
    assert ["at 20 CPU seconds" in c.what for c in at_equal_cpu] == [False, True]
    assert at_equal_cpu[1].value == pytest.approx(0.6 - 0.42), "GRPO's curve is linear"
    assert [c.verdict for c in judged["Student beyond teacher"].comparisons] == [FAILS, FAILS]
    assert len(judged["A fifth of GRPO's time per step"].comparisons) == 2


def test_what_trained_nothing_is_in_no_ratio() -> None:
    judged = claims(grpo=arm("grpo", (0, 0.4), (100, 0.5)), opd=arm("opd", (0, 0.4)))
    assert list(judged) == ["OPD above GRPO", "Faster convergence"]
    assert {c.kind for c in judged["Faster convergence"].comparisons} == {"difference"}


def test_a_difference_is_paired_by_seed() -> None:
    ours = [result("opd", s, (0, 0), (1, 0.1 * s + 0.02)) for s in range(5)]
    theirs = [result("grpo", s, (0, 0), (1, 0.1 * s)) for s in (7, 4, 3, 2, 1, 0)]
    own = claims(opd=ours, grpo=theirs)["OPD above GRPO"].comparisons[0]
    assert (own.low, own.value, own.high) == pytest.approx((0.02, 0.02, 0.02))
    assert not claims(opd=ours, grpo=theirs[:1])


def test_costs_may_be_counted_in_steps_and_tokens() -> None:
    arms = {"opd": arm("opd", (0, 0.4), (10, 0.6)), "grpo": arm("grpo", (0, 0.4), (9, 0.5), (9, 0))}
    rows = """claims = [{ name = "x", statement = "y", arms = ["opd"], against = ["grpo"], rows = [
        { measure = "cost_to_best", cost = "tokens", bound = 1 }, { at_equal = "steps" },
        { measure = "cost_to_best", cost = "steps", metric = "r1_70", bound = 0.4 }] }]"""
    (claim,) = judge_claims(
        arms, TypeAdapter(list[ClaimSection]).validate_python(tomllib.loads(rows)["claims"])
    )
    assert [c.what for c in claim.comparisons] == [
        "tokens to `grpo`'s best mean mIoU, `opd` / `grpo`",
        "mIoU of `opd` - `grpo` at 10 steps",
        "steps to `grpo`'s best mean R1@0.7, `opd` / `grpo`",
    ]
    assert [c.value for c in claim.comparisons] == pytest.approx([0.5, 0.1, 0.5], abs=0.03)
    assert [c.verdict for c in claim.comparisons] == [HOLDS, HOLDS, FAILS]


PUBLISHED = [
    plan
    for file in sorted((ROOT / "configs" / "studies").glob("*.toml"))
    for plan in load_study(file, ROOT / "runs")
    if (ROOT / "docs" / "studies" / f"{plan.name}.json").exists()
]
NOT_MEASURED_THEN = {"r1_30": 0.0, "r1_50": 0.0, "no_span": 0.0, "seconds_longer": None}


@pytest.mark.parametrize("plan", PUBLISHED, ids=lambda plan: plan.name)
def test_the_published_studies_keep_their_verdicts(plan: Plan) -> None:
    """Their stored runs, judged by the claims of their TOML, are what was published."""
    published = json.loads((ROOT / "docs" / "studies" / f"{plan.name}.json").read_text())
    arms: dict[str, list[ArmResult]] = {}
    for run in published["runs"]:
        points = tuple(
            Point(**(NOT_MEASURED_THEN | point), examples=()) for point in run.pop("points")
        )
        arms.setdefault(run["arm"], []).append(ArmResult(**run, points=points))
    judged = judge_claims(arms, plan.study.claims)
    assert [(c.name, c.statement, c.verdict) for c in judged] == [
        (c["name"], c["statement"], c["verdict"]) for c in published["claims"]
    ]
    for claim, was in zip(judged, published["claims"], strict=True):
        mine = {c.what.replace("`grpo`'s", "GRPO's"): c for c in claim.comparisons}
        assert len(mine) == len(claim.comparisons) == len(was["comparisons"])
        for old in was["comparisons"]:
            new = mine[old["what"]]
            assert (new.kind, new.verdict) == (old["kind"], old["verdict"])
            for key in ("value", "low", "high", "bound"):
                value, expected = getattr(new, key), old[key]
                if expected is None:  # JSON has no infinity
                    assert value is None or math.isinf(value)
                else:
                    assert value == pytest.approx(expected, rel=1e-9), f"{key} of {old['what']}"


MISTAKES = [
    ('arms = ["opd"]', 'arms = ["odp"]', "claim 'x' names 'odp', .* did you mean 'opd'"),
    ("at_equal", "at_equals", "unknown key 'claims.0.rows.0.at_equals'; did you mean 'at_equal'"),
    ('at_equal = "steps"', 'measure = "cost_to_best"', "'cost_to_best' needs a bound above 0"),
    ('at_equal = "steps"', 'at_equal = "stebs"', "claims.0.rows.0.at_equal = 'stebs' is not valid"),
]


@pytest.mark.parametrize(("right", "wrong", "message"), MISTAKES)
def test_a_mistake_in_a_claim_is_named_with_its_fix(
    tmp_path: Path, right: str, wrong: str, message: str
) -> None:
    claim = """[[claims]]
    name = "x"
    statement = "y"
    arms = ["opd"]
    against = ["base"]
    rows = [{ at_equal = "steps" }]
    [quick]"""
    file = tmp_path / "mine.toml"
    file.write_text(STUDY.replace("[quick]", claim.replace(right, wrong), 1))
    with pytest.raises(VideoOPDError, match=message) as caught:
        load_study(file, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_single_seed_settles_nothing() -> None:
    judged = claims(
        opd=[result("opd", 0, (0, 0), (1, 0.9))], grpo=[result("grpo", 0, (0, 0), (1, 0))]
    )
    assert {c.verdict for c in judged.values()} == {OPEN}


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
    assert never.verdict == FAILS and never.comparisons[0].value == math.inf


def test_nothing_is_faster_than_what_never_rose() -> None:
    grpo = arm("grpo", (0, 0.4), (50, 0.3))
    judged = claims(opd=arm("opd", (0, 0.4), (20, 0.6)), grpo=grpo)["Faster convergence"]
    assert judged.verdict == OPEN and judged.comparisons[0].value is None


def test_tvdf_at_equal_rounds_and_at_equal_cost() -> None:
    ours, others = arm("opd", (0, 0.4), (50, 0.5)), arm("all", (0, 0.4), (100, 0.52))
    judged = claims(opd=ours, all=others)["TVDF helps"]
    final, at_cost = judged.comparisons
    assert final.verdict == FAILS and final.value == pytest.approx(-0.02)
    assert "at 50 CPU seconds" in at_cost.what
    assert at_cost.verdict == HOLDS and at_cost.value == pytest.approx(0.04)
    assert judged.verdict == FAILS  # of the first, which is the claim


def test_student_beyond_teacher() -> None:
    teacher = arm("teacher", (0, 0.85))
    judged = claims(opd=arm("opd", (0, 0.4), (50, 0.6)), teacher=teacher)
    assert judged["Student beyond teacher"].verdict == FAILS


def test_the_tree_at_equal_cost() -> None:
    one, tree = arm("one", (0, 0.4), (50, 0.5)), arm("opd", (0, 0.4), (100, 0.7))
    (own,) = claims(opd=tree, one=one)["The 8-rollout tree beats 1 rollout"].comparisons
    assert own.value == pytest.approx(0.05) and own.verdict == HOLDS


def test_a_claim_without_its_arms_is_left_out() -> None:
    assert list(claims(opd=arm("opd", (0, 0), (1, 1)), one=arm("one", (0, 0), (1, 1)))) == [
        "The 8-rollout tree beats 1 rollout"
    ]
