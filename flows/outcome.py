"""What a round brought, read from the tables: so a resumed round reports all of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import polars as pl

from flows.prepare import Work
from flows.summaries import RoundSummary, StageSummary
from opd_core.metrics import grounding_metrics


def summarize(work: Work, version: int, stages: Sequence[StageSummary]) -> RoundSummary:
    """The policy's evaluation, and the round (of policy `version` - 1) that made it."""
    answers = work.run.evaluations().filter(pl.col("policy_version") == version)
    (found,) = grounding_metrics(answers).collect().iter_rows(named=True)
    summary = RoundSummary(
        policy_version=version,
        eval_examples=found["examples"],
        miou=found["strict_miou"],
        r1_30=found["strict_r1_30"],
        r1_50=found["strict_r1_50"],
        r1_70=found["strict_r1_70"],
        stage_seconds={s.stage: s.seconds for s in stages},
        notes=tuple(
            f"{s.stage}: {key.replace('_', ' ')}: {s.notes[key]}"
            for s in stages
            for key in ("quarantined", "stopped_early", "optimizer_restarted")
            if key in s.notes
        ),
    )
    if version == 0:
        return summary
    mine = pl.col("policy_version") == version - 1
    rollouts = work.run.rollouts().filter(mine)
    (sampled,) = (
        rollouts.select(
            rollouts=pl.len(),
            tokens=pl.col("completion_token_ids").list.len().sum(),
            engine_mismatch=pl.col("engine_mismatch").max(),
        )
        .collect()
        .iter_rows(named=True)
    )
    pairs = (
        rollouts.filter(pl.col("answered_by") == "student")
        .select("rollout_id", "sampling_logprobs")
        .collect()
        .join(
            work.run.teacher_scores()
            .filter(mine & (pl.col("teacher_hash") == work.teacher_hash))
            .select("rollout_id", "teacher_logprobs")
            .collect(),
            on="rollout_id",
        )
        .explode("sampling_logprobs", "teacher_logprobs")
    )
    kl = pairs.select((pl.col("sampling_logprobs") - pl.col("teacher_logprobs")).mean()).item()
    (update,) = (
        work.run.updates()
        .filter(pl.col("policy_version") == version)
        .select("teacher_passes_saved")
        .collect()
        .iter_rows(named=True)
    )
    return replace(
        summary,
        notes=(*summary.notes, *_copied(work, version - 1), *_reuse(work, version - 1)),
        reverse_kl=kl,
        rollouts=sampled["rollouts"],
        tokens=sampled["tokens"],
        engine_mismatch=sampled["engine_mismatch"],
        teacher_passes_saved=update["teacher_passes_saved"],
    )


def _copied(work: Work, version: int) -> list[str]:
    """How many of the round's examples needed no answers of the teacher, where some were copied."""
    drawn = work.run.draws().filter(pl.col("policy_version") == version).select("example_id")
    answers = work.predictions().select("example_id", "reused_from").unique("example_id")
    copied = pl.col("reused_from").is_not_null()
    rows = drawn.join(answers, on="example_id").select(pl.len(), copied.sum())
    total, reused = rows.collect().row(0)
    if not reused:
        return []
    return [
        f"validate: {reused:,} of {total:,} examples' answers were copied ({reused / total:.1%})"
    ]


def _reuse(work: Work, version: int) -> list[str]:
    """How much of the round's scoring needed no teacher, in a sentence."""
    mine = (pl.col("policy_version") == version) & (pl.col("teacher_hash") == work.teacher_hash)
    rows = work.run.teacher_scores().filter(mine)
    copied = pl.col("reused_from").is_not_null()
    total, reused = rows.select(pl.len(), copied.sum()).collect().row(0)
    if not total:
        return []
    return [f"score: {reused:,} of {total:,} scores were known before ({reused / total:.1%})"]
