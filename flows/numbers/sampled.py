"""What a round sampled, and what its teacher thinks of it: numbers over its rollouts.

The lists of log-probs are read a round at a time, in batches, of which 64 bits are kept instead of
an id: two of the same bits are one in ten million runs of a million rollouts, and move a mean
by a millionth. What is known of a round is kept, in this process, for as long as it has as many
rows: rows are only ever added, and a rerun is a new key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import polars as pl

from opd_core.types import split_hashes
from storage.asking.in_batches import in_batches
from storage.tables.columns import columns_of
from storage.tables.views import round_teachers, scored_once

if TYPE_CHECKING:
    from storage.runs.run import Run

_KNOWN: dict[object, dict[str, Any]] = {}
_AT_MOST = 4096


@dataclass(frozen=True, slots=True)
class Sampled:
    """Over the rollouts of one round that are in force."""

    rollouts: Annotated[int | None, "Rollouts of the round."]
    rollouts_without_span: Annotated[int | None, "Those that hold no span."]
    without_span: Annotated[float | None, "Their share."]
    mean_iou: Annotated[float | None, "Mean temporal IoU with the truth; no span counts 0."]
    iou_std: Annotated[
        float | None,
        "Mean over examples of the standard deviation (n - 1) of their rollouts' IoUs; null "
        "where no example has two.",
    ]
    iou_std_zero: Annotated[
        float | None, "Share of the examples with two rollouts or more whose IoUs are all equal."
    ]
    mean_length: Annotated[float | None, "Mean completion tokens of a rollout."]
    min_length: Annotated[int | None, "Fewest."]
    max_length: Annotated[int | None, "Most."]
    clipped: Annotated[float | None, "Share that `rollout.max_new_tokens` ended."]
    sampled_tokens: Annotated[int | None, "Completion tokens of all."]
    entropy: Annotated[
        float | None,
        "Estimate of the policy's entropy, nats a token: -mean of the sampling log-probs; of "
        "answers that it sampled itself.",
    ]
    engine_mismatch: Annotated[
        float | None,
        "Largest |engine - trainer| log-prob of what the rollout stage's gate scored again, nats.",
    ]
    scored: Annotated[int | None, "Rollouts of the policy's own that their teacher scored."]
    scored_tokens: Annotated[int | None, "Their tokens."]
    teacher_kl: Annotated[
        float | None,
        "k1 estimate of KL(pi_v || q): mean of sampling - teacher log-probs over `scored_tokens`, "
        "nats.",
    ]
    teacher_logprob: Annotated[float | None, "Mean teacher log-prob of the same tokens, nats."]


def sampled(run: Run, only: int | None = None) -> dict[int, dict[str, Any]]:
    """policy_version that sampled -> the columns of `Sampled`; of all rounds, or `only` one."""
    answers, scores = (_counts(run, name, only) for name in ("rollouts", "teacher_scores"))
    if not answers:
        return {}
    reruns = len(run.takes().reruns)
    teachers: dict[int, str] | None = None
    made: dict[int, dict[str, Any]] = {}
    committed = set(run.updates().select("parent_version").collect()["parent_version"])
    for version in sorted(answers):
        key = (
            run.path, run.run_id, version, answers[version], scores.get(version), reruns,
            version in committed,
        )  # fmt: skip
        if (known := _KNOWN.get(key)) is None:
            if teachers is None:
                teachers = dict(
                    round_teachers(run.scan, run.teacher_hash)
                    .select("policy_version", "teacher_hash")
                    .collect()
                    .iter_rows()
                )
            if len(_KNOWN) >= _AT_MOST:
                _KNOWN.clear()
            known = _KNOWN[key] = _of_round(run, version, teachers[version])
        made[version] = known
    return made


def _counts(run: Run, name: str, only: int | None) -> dict[int, int]:
    rows = run.scan(name).select("policy_version")
    if only is not None:
        rows = rows.filter(pl.col("policy_version") == only)
    return dict(rows.group_by("policy_version").len().collect().iter_rows())


def _of_round(run: Run, version: int, teachers: str) -> dict[str, Any]:
    answers = in_batches(
        run, "rollouts",
        ("rollout_id", "example_id", "student_iou", "engine_mismatch", "answered_by",
         "predicted_start", "finish_reason", "completion_token_ids", "sampling_logprobs"),
        lambda rows: rows.select(
            pl.col("rollout_id", "example_id").hash(), "student_iou", "engine_mismatch",
            own=pl.col("answered_by") == "student",
            spanless=pl.col("predicted_start").is_null(),
            clipped=pl.col("finish_reason") == "length",
            length=pl.col("completion_token_ids").list.len().cast(pl.Int64),
            ours=_sum("sampling_logprobs"),
        ),
        version,
    )  # fmt: skip
    scores = in_batches(
        run, "teacher_scores", ("rollout_id", "teacher_hash", "teacher_logprobs"),
        lambda rows: rows.filter(pl.col("teacher_hash").is_in(split_hashes(teachers))).select(
            pl.col("rollout_id").hash(), theirs=_sum("teacher_logprobs")
        ),
        version,
    )  # fmt: skip
    scores = scored_once(scores, teachers)
    pairs = answers.filter("own").join(scores, on="rollout_id").drop_nulls(["ours", "theirs"])
    groups = (
        answers.group_by("example_id")
        .agg(pl.len(), std=pl.col("student_iou").std())
        .filter(pl.col("len") > 1)
    )
    lengths_of = answers["length"]
    sampled_own = answers.filter("own").drop_nulls("ours")
    tokens, scored_tokens = int(lengths_of.sum()), int(pairs["length"].sum())
    ours, theirs = float(pairs["ours"].sum()), float(pairs["theirs"].sum())
    values = Sampled(
        rollouts=answers.height,
        rollouts_without_span=int(answers["spanless"].sum()),
        without_span=_number(answers["spanless"].mean()),
        mean_iou=_number(answers["student_iou"].mean()),
        iou_std=_number(groups["std"].mean()),
        iou_std_zero=_number((groups["std"] == 0).mean()),
        mean_length=_number(lengths_of.mean()),
        min_length=_whole(lengths_of.min()),
        max_length=_whole(lengths_of.max()),
        clipped=_number(answers["clipped"].mean()),
        sampled_tokens=tokens,
        entropy=_ratio(-float(sampled_own["ours"].sum()), int(sampled_own["length"].sum())),
        engine_mismatch=_number(answers["engine_mismatch"].max()),
        scored=pairs.height,
        scored_tokens=scored_tokens,
        teacher_kl=_ratio(ours - theirs, scored_tokens),
        teacher_logprob=_ratio(theirs, scored_tokens),
    )
    return {column.name: getattr(values, column.name) for column in columns_of(Sampled)}


def _sum(name: str) -> pl.Expr:
    """Of a list of log-probs; null where there is none."""
    return pl.col(name).cast(pl.List(pl.Float64)).list.sum()


def _ratio(total: float, count: int) -> float | None:
    return total / count if count else None


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)
