"""One row a policy: how well it does, and what the round was like that made it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import polars as pl

from flows.numbers import frames
from flows.numbers.accuracy import accuracy, metric_meanings
from flows.numbers.sampled import Sampled, sampled

if TYPE_CHECKING:
    from storage.runs.run import Run


@dataclass(frozen=True, slots=True)
class Focused:
    """What focus made of the round's rollouts."""

    considered: Annotated[int | None, "Rollouts that focus decided about."]
    selected: Annotated[int | None, "Those it took."]
    disagreement: Annotated[
        float | None,
        "Mean of teacher IoU - student IoU over the considered rollouts that have both.",
    ]
    disagreement_selected: Annotated[float | None, "The same over those it took."]


@dataclass(frozen=True, slots=True)
class Trained:
    """What the update said that made the policy."""

    objective: Annotated[str | None, "Its name, or those of a weighted sum."]
    trained_rollouts: Annotated[int | None, "Rollouts trained on."]
    trained_tokens: Annotated[int | None, "Completion tokens trained on."]
    steps: Annotated[int | None, "Optimiser steps of the update."]
    loss: Annotated[float | None, "Mean loss of its steps, by their tokens."]
    effective_sample_size: Annotated[
        float | None, "ESS of its steps, 1: all tokens count alike; mean by their tokens."
    ]
    policy_kl_max: Annotated[
        float | None, "Largest KL of a step to the policy that the update began with, nats a token."
    ]
    update_seconds: Annotated[float | None, "Wall-clock of the update."]
    moved_share: Annotated[float | None, "Share of the trained weights that the update moved."]
    logprob_mismatch: Annotated[
        float | None, "Mean |student - sampling| log-prob on its first step, nats."
    ]
    logprob_mismatch_max: Annotated[float | None, "The largest."]
    teacher_passes_saved: Annotated[int | None, "Rollouts that were never scored."]
    stopped_early: Annotated[str | None, "Why the update ended before its last step."]


AT = pl.Datetime("us", "UTC")
_ROUND = (Sampled, Focused, Trained)


def columns() -> dict[str, str]:
    """Column -> what it means."""
    made: dict[str, str] = {
        "policy_version": "Of the policy; 0 is the base. All but the metrics is of the round that "
        "made it (policy_version - 1 sampled), null for the base.",
        "eval_examples": "Examples of the present eval split that it has answered; null: none.",
    }
    made |= metric_meanings()
    for record in _ROUND:
        made |= frames.meanings(record)
    made["quarantined"] = "Items that the stages of the round gave up, its evaluation included."
    made["drawn"] = "Examples drawn for the round."
    made["committed_at"] = "When the row in `updates` was written."
    return made


def rounds(run: Run, only: int | None = None) -> pl.DataFrame:
    """The columns of `columns()`, by policy_version; of all policies in force, or `only` one."""
    updates = _updates(run, only)
    answered = accuracy(run, only)
    before = None if only is None else only - 1
    answers, focused = sampled(run, before), _focused(run, before)
    drawn = _count(run, "draws", pl.col("policy_version"))
    evaluated = (pl.col("stage") == "evaluate").cast(pl.Int64)
    of_policy = pl.col("policy_version") + 1 - evaluated
    lost = _count(run, "quarantine", of_policy)
    rows: list[dict[str, Any]] = []
    for version in sorted({0, *updates}) if only is None else [only]:
        row: dict[str, Any] = {"policy_version": version, **answered.get(version, {})}
        row["quarantined"] = lost.get(version, 0)
        if version:
            row |= answers.get(version - 1, {}) | focused.get(version - 1, {})
            row |= updates.get(version, {})
            row["drawn"] = drawn.get(version - 1, 0)
        rows.append(row)
    return pl.DataFrame(rows, schema=_schema(), orient="row")


def reasons(run: Run) -> pl.DataFrame:
    """policy_version (made by the round), reason, selected, rollouts: why focus took rollouts or
    not, most first in each round."""
    return (
        run.selections()
        .group_by("policy_version", "reason", "selected")
        .agg(rollouts=pl.len().cast(pl.Int64))
        .with_columns(pl.col("policy_version") + 1)
        .select("policy_version", "reason", "selected", "rollouts")
        .sort("policy_version", "rollouts", "reason", descending=[False, True, False])
        .collect()
    )


def _schema() -> pl.Schema:
    known: dict[str, pl.DataType] = {"policy_version": pl.Int64(), "eval_examples": pl.Int64()}
    known |= dict.fromkeys(metric_meanings(), pl.Float64())
    for record in _ROUND:
        known |= frames.schema(record)
    return pl.Schema(known | {"quarantined": pl.Int64(), "drawn": pl.Int64(), "committed_at": AT})


def _focused(run: Run, only: int | None) -> dict[int, dict[str, Any]]:
    rows = run.selections()
    if only is not None:
        rows = rows.filter(pl.col("policy_version") == only)
    gap = pl.col("disagreement").fill_nan(None)
    made = rows.group_by("policy_version").agg(
        considered=pl.len().cast(pl.Int64),
        selected=pl.col("selected").sum().cast(pl.Int64),
        disagreement=gap.mean(),
        disagreement_selected=gap.filter(pl.col("selected")).mean(),
    )
    return {row.pop("policy_version"): row for row in made.collect().to_dicts()}


def _updates(run: Run, only: int | None) -> dict[int, dict[str, Any]]:
    rows = run.updates()
    if only is not None:
        rows = rows.filter(pl.col("policy_version") == only)
    columns = (
        "policy_version", "objective", "rollouts", "tokens", "steps", "seconds", "moved_share",
        "mean_logprob_mismatch", "max_logprob_mismatch", "written_at",
        "teacher_passes_saved", "stopped_early",
    )  # fmt: skip
    made = {}
    for row in rows.select(columns).collect().to_dicts():
        steps = row["steps"]
        kls = [step["policy_kl"] for step in steps if step["policy_kl"] is not None]
        values = Trained(
            objective=row["objective"],
            trained_rollouts=row["rollouts"],
            trained_tokens=row["tokens"],
            steps=len(steps),
            loss=_by_tokens(steps, "loss"),
            effective_sample_size=_by_tokens(steps, "effective_sample_size"),
            policy_kl_max=max(kls, default=None),
            update_seconds=row["seconds"],
            moved_share=row["moved_share"],
            logprob_mismatch=row["mean_logprob_mismatch"],
            logprob_mismatch_max=row["max_logprob_mismatch"],
            teacher_passes_saved=row["teacher_passes_saved"],
            stopped_early=row["stopped_early"],
        )
        made[row["policy_version"]] = {f.name: getattr(values, f.name) for f in fields(values)}
        made[row["policy_version"]]["committed_at"] = row["written_at"]
    return made


def _by_tokens(steps: list[dict[str, Any]], name: str) -> float | None:
    """Mean over the steps that have the number, each by its tokens."""
    known = [step for step in steps if step[name] is not None]
    tokens = sum(step["tokens"] for step in known)
    return sum(step[name] * step["tokens"] for step in known) / tokens if tokens else None


def _count(run: Run, table: str, version: pl.Expr) -> dict[int, int]:
    """policy_version -> rows of a table."""
    rows = run.scan(table).filter(pl.col("policy_version").is_not_null())
    return dict(rows.group_by(version.alias("version")).len().collect().iter_rows())
