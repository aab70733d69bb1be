"""What a run of a study brought, read from its tables and its costs: one point a policy.

Evaluation costs nothing here, nor does what happens before the first stage (opening the run,
importing annotations): both are the same for every arm.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from flows.stage.costs import BETWEEN, COSTS_FILE, StageCost, read_costs
from flows.study.curves import Point, Result
from flows.study.plan import Plan, StudyRun
from opd_core.config.load import Config
from opd_core.types import VideoOPDError

if TYPE_CHECKING:
    import polars as pl

    from storage.runs.run import Run

UNTIMED = "evaluate"


def is_complete(plan: Plan, run: StudyRun) -> bool:
    """Tell whether the run has all its rounds, evaluated.

    Raises `VideoOPDError` when its folder holds a run with other settings.
    """
    path = plan.path(run)
    if not (path / "run.json").exists():
        return False
    _check_settings(plan, run)
    from storage.runs.run import Run

    opened = Run.open(path)
    if run.rounds:
        return run.rounds in opened.finished_rounds()
    return not _unanswered(plan, run, opened)


def read_result(plan: Plan, run: StudyRun) -> Result:
    """The points of a complete run. Raises `VideoOPDError` where evidence is missing."""
    import polars as pl

    from opd_core.spans.metrics import grounding_metrics, no_span
    from storage.runs.run import Run

    opened = Run.open(plan.path(run))
    answers = opened.present_evaluations().filter(pl.col("policy_version") <= run.rounds)
    metrics = {
        row["policy_version"]: row
        for row in grounding_metrics(answers, "policy_version").collect().iter_rows(named=True)
    }
    longer = seconds_longer(answers, opened.present())
    steps: dict[int, int] = dict(
        opened.updates().select("policy_version", pl.col("steps").list.len()).collect().iter_rows()
    )
    drawn = opened.draws().sort("policy_version", "position").collect()
    costs = _by_round(read_costs(plan.path(run) / COSTS_FILE))
    points: list[Point] = []
    total = Point(0, 0, 0.0, 0.0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, None, False, {}, ())
    for version in range(run.rounds + 1):
        if version not in metrics or (version and not (version in steps and version in costs)):
            raise VideoOPDError(
                f"{plan.path(run)} lacks the evaluation, the update or the cost of round {version};"
                " remove the folder and run the study again"
            )
        lines = costs.get(version, []) if version else []
        examples = drawn.filter(pl.col("policy_version") == version - 1)["example_id"]
        total = Point(
            round=version,
            steps=total.steps + (steps[version] if version else 0),
            cpu_seconds=total.cpu_seconds + sum(c.cpu_seconds for c in lines),
            seconds=total.seconds + sum(c.seconds for c in lines),
            tokens=total.tokens + sum(c.tokens for c in lines),
            miou=metrics[version]["strict_miou"],
            r1_30=metrics[version]["strict_r1_30"],
            r1_50=metrics[version]["strict_r1_50"],
            r1_70=metrics[version]["strict_r1_70"],
            no_span=metrics[version][no_span("strict")],
            seconds_longer=longer[version],
            resumed=len({c.attempt for c in lines}) > 1,
            stage_cpu_seconds=_by_stage(lines),
            examples=tuple(examples.to_list()),
        )
        points.append(total)
    return Result(run.arm, run.learning_rate, run.seed, tuple(points))


def seconds_longer(answers: pl.LazyFrame, examples: pl.LazyFrame) -> dict[int, float | None]:
    """Policy version -> mean of answered - true length, s, over the answers with a span; None where
    there is none.

    An answer counts as far as its video goes: a slip as "812.0" would outweigh hundreds of others.
    `answers`: policy_version, example_id, predicted_start, predicted_end (null without a span).
    `examples`: example_id, span_start, span_end, duration.
    """
    import polars as pl

    start, end = (
        pl.min_horizontal(pl.when(c.is_not_null()).then(pl.col("duration")), c)
        for c in (pl.col("predicted_start"), pl.col("predicted_end"))
    )
    longer = (end - start) - (pl.col("span_end") - pl.col("span_start"))
    means = (
        answers.join(examples, on="example_id")
        .group_by("policy_version")
        .agg(longer.mean())
        .collect()
    )
    return dict(means.iter_rows())


def _by_round(costs: list[StageCost]) -> dict[int, list[StageCost]]:
    """The lines that a round paid for, by the policy it made."""
    paid: dict[int, list[StageCost]] = {}
    for cost, following in zip(costs, [*costs[1:], None], strict=True):
        evaluating = UNTIMED in (
            cost.stage,
            following and cost.stage == BETWEEN and following.stage,
        )
        if not evaluating:
            paid.setdefault(cost.policy_version + 1, []).append(cost)
    return paid


def _by_stage(lines: list[StageCost]) -> dict[str, float]:
    ordered = sorted(lines, key=lambda c: c.stage)
    return {
        stage: sum(c.cpu_seconds for c in group)
        for stage, group in groupby(ordered, key=lambda c: c.stage)
    }


def _unanswered(plan: Plan, run: StudyRun, opened: Run) -> bool:
    """Whether the base policy still has sentences to answer."""
    import polars as pl

    config = plan.config(run)
    examples = opened.present().filter(pl.col("split") == "eval").select(pl.len()).collect().item()
    answered = opened.present_evaluations().filter(pl.col("policy_version") == 0)
    given_up = opened.quarantine().filter(pl.col("stage") == UNTIMED)
    dealt = sum(f.select(pl.len()).collect().item() for f in (answered, given_up))
    return not examples or dealt < min(examples, config.evaluate.max_examples or examples)


def _check_settings(plan: Plan, run: StudyRun) -> None:
    wanted = plan.config(run)
    for file in sorted((plan.path(run) / "configs").glob("*.json")):
        if file.stem == wanted.hash:
            continue
        try:
            was = Config.model_validate_json(file.read_text())
        except ValueError:
            difference = "one of them is not known to this version"
        else:
            if was.hash == wanted.hash:  # but for a key that has come since, at its default then
                continue
            difference = _first_difference(was.what_counts(), wanted.what_counts())
        raise VideoOPDError(
            f"{plan.path(run)} was run with other settings ({difference}); "
            "remove the folder, or give the study's file another name"
        )


def _first_difference(was: dict[str, Any], now: dict[str, Any]) -> str:
    """The first key of two configs that counts and differs."""
    return next(
        f"{section}.{key} was {was[section][key]!r}, is {value!r} now"
        for section, values in now.items()
        for key, value in values.items()
        if was[section][key] != value
    )
