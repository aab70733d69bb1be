"""What a round brought, read from the tables: so a resumed round reports all of itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import polars as pl

from flows.numbers.rounds import rounds
from flows.stage.left_out import left_out
from flows.stage.prepare import Work
from flows.stage.read_data import changes_of_round
from flows.stage.rows import eval_examples
from flows.stage.typed_config import config_words
from flows.summaries import RoundSummary, StageSummary

REASONS_TOLD = 3
TOLD = ("stopped_early", "optimizer_restarted", "went_on_at_step", "workers_lost", "done_again")
"""Notes of stages that a round's summary repeats."""


def summarize(work: Work, version: int, stages: Sequence[StageSummary]) -> RoundSummary:
    """The policy's evaluation, and the round (of policy `version` - 1) that made it."""
    asked = len(eval_examples(work))
    (row,) = rounds(work.run, only=version).to_dicts()
    answered = row["eval_examples"] or 0
    summary = RoundSummary(
        policy_version=version,
        eval_examples=answered,
        miou=row["strict_miou"],
        r1_30=row["strict_r1_30"],
        r1_50=row["strict_r1_50"],
        r1_70=row["strict_r1_70"],
        eval_asked=asked,
        no_span=row["parse_failures"],
        annotations_left_out=_count(work, pl.col("stage") == "import"),
        stage_seconds={s.stage: s.seconds for s in stages},
        notes=tuple(
            f"{s.stage}: {key.replace('_', ' ')}: {s.notes[key]}"
            for s in stages
            for key in TOLD
            if key in s.notes
        )
        + tuple(_unanswered(work, version, asked - answered))
        + tuple(_other_examples(work, version)),
    )
    if version == 0:
        before = (pl.col("stage") == "import") | given_up_for(0)
        return replace(summary, notes=(*summary.notes, *_reasons(work, before)))
    return replace(
        summary,
        notes=(
            *_changed(work, version - 1),
            *summary.notes,
            *_reasons(work, given_up_for(version)),
            *_copied(work, version - 1),
            *_reuse(work, version - 1),
        ),
        sampling_k1=row["teacher_kl"],
        rollouts=row["rollouts"] or 0,
        rollouts_without_span=row["rollouts_without_span"] or 0,
        left_out=row["quarantined"],
        tokens=row["sampled_tokens"] or 0,
        engine_mismatch=row["engine_mismatch"],
        teacher_passes_saved=row["teacher_passes_saved"],
    )


def _changed(work: Work, version: int) -> list[str]:
    """What became of the annotations before or in the round, where anything did."""
    changes = changes_of_round(work.run, version)
    return [f"annotations: {changes}"] if changes else []


def _unanswered(work: Work, version: int, count: int) -> Iterator[str]:
    """How many of the eval split are in no number, and why."""
    if count <= 0:
        return
    rows = work.run.quarantine().filter(
        (pl.col("policy_version") == version) & (pl.col("stage") == "evaluate")
    )
    answered = work.run.evaluations().filter(pl.col("policy_version") == version)
    why = rows.join(answered, left_on="item_id", right_on="example_id", how="anti")
    reasons = why.select("reason").collect()["reason"].to_list()
    first = f", the first because {reasons[0]}" if reasons else ""
    yield f"evaluate: {count:,} examples of the eval split have no answer{first}"


def _other_examples(work: Work, version: int) -> Iterator[str]:
    """Whether the policy before answered other examples: then their means do not compare."""
    if version == 0:
        return
    rows = work.run.present_evaluations().select("policy_version", "example_id").collect()
    before, now = (
        set(rows.filter(pl.col("policy_version") == v)["example_id"])
        for v in (version - 1, version)
    )
    if before and before != now:
        yield (
            f"evaluate: of the present eval split policy {version - 1} answered {len(before):,} "
            f"examples and policy {version} {len(now):,}, {len(before & now):,} of them the same; "
            f"`videoopd evaluate {config_words(work.run)} --policy {version - 1}` asks what is "
            "missing"
        )


def given_up_for(version: int) -> pl.Expr:
    """What was given up on the way to policy `version` and in its evaluation, of `quarantine`."""
    evaluated = pl.col("stage") == "evaluate"
    return pl.col("policy_version") == version - 1 + evaluated.cast(pl.Int64)


def _count(work: Work, where: pl.Expr) -> int:
    return sum(item.count for item in left_out(work.run, where))


def _reasons(work: Work, where: pl.Expr) -> list[str]:
    """A sentence a kind of reason, the most frequent ones."""
    reasons = left_out(work.run, where)
    lines = [f"left out: {item.line()}" for item in reasons[:REASONS_TOLD]]
    if more := sum(item.count for item in reasons[REASONS_TOLD:]):
        lines.append(f"left out: {more:,} for other reasons, in the table quarantine")
    return lines


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
    mine = (pl.col("policy_version") == version) & work.teachers.scores()
    rows = work.run.teacher_scores().filter(mine)
    copied = pl.col("reused_from").is_not_null()
    total, reused = rows.select(pl.len(), copied.sum()).collect().row(0)
    if not total:
        return []
    return [f"score: {reused:,} of {total:,} scores were known before ({reused / total:.1%})"]
