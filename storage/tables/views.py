"""The two joins an analyst wants, so that nobody writes them again: a rollout, and a token.

`trajectories`: one row a rollout, with its example, the teacher's own answers, the teacher's score,
why focus took it or not, and the update that trained on it. `tokens`: one row a token of an answer.

A round has the teachers that its update names; before the update, those that scored it last; before
that, those the run began with. Of several, a rollout's is the one that scored it; of one that was
not scored, the only one that has answered its example, or null. Scores and answers of other
teachers stay in their tables.

`trained` is whether a committed update trained on it: one that ended early has not seen all of its
selection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from opd_core.types import split_hashes

if TYPE_CHECKING:
    import polars as pl

Scan = Callable[[str], "pl.LazyFrame"]
"""A table by name, at the version that is asked about."""
Texts = Callable[[Sequence[int]], Sequence[str]]
"""The text of each token id; the tokenizer is no business of the store."""

VIEWS = {
    "trajectories": "One row a rollout: example, answer, teacher, score, selection, update.",
    "tokens": "One row a token of an answer: text, log-probs, divergences, whether trained.",
}


def trajectories(scan: Scan, run_teacher: str) -> pl.LazyFrame:
    """One row a rollout; `run_teacher` is the hash of the teacher that the run began with."""
    import polars as pl

    examples = scan("examples").select(
        "example_id", "video_path", "query", "span_start", "span_end", "source", "split", "duration"
    )
    rounds = rounds_of(scan, run_teacher)
    by_teacher = ["example_id", "teacher_hash", "question_hash"]
    answers = (
        scan("teacher_predictions")
        .group_by(by_teacher)
        .agg(teacher_iou=pl.col("iou").mean(), teacher_answers=pl.len())
    )
    scores = scan("teacher_scores").select("rollout_id", "teacher_hash", "teacher_logprobs")
    selections = scan("selections").select(
        "rollout_id", "policy_version", "selected", "reason", "disagreement", "rank"
    )
    trained = scan("trained_rollouts").select("rollout_id", "student_logprobs", step="step")
    several = scan("updates").select(pl.col("teacher_hash").str.contains("+", literal=True).any())
    own = _with_own_teacher if "+" in run_teacher or several.collect().item() else _as_they_are
    return (
        scan("rollouts")
        .select(
            "rollout_id", "example_id", "policy_version", "policy_hash", "answered_by",
            "sample_index",
            "text",
            "predicted_start", "predicted_end", "student_iou", "finish_reason",
            "completion_token_ids", "sampling_logprobs",
            tokens=pl.col("completion_token_ids").list.len(),
        )
        .join(examples, on="example_id", how="left", maintain_order="left")
        .join(rounds, on="policy_version", how="left", maintain_order="left")
        .pipe(own, scan)
        .join(answers, on=by_teacher, how="left", maintain_order="left")
        .join(scores, on=["rollout_id", "teacher_hash"], how="left", maintain_order="left")
        .join(selections, on=["rollout_id", "policy_version"], how="left", maintain_order="left")
        .join(trained, on="rollout_id", how="left", maintain_order="left")
        .with_columns(
            # k1 estimate of the reverse KL on this answer: its mean advantage, negated.
            reverse_kl=pl.col("sampling_logprobs").list.mean()
            - pl.col("teacher_logprobs").list.mean(),
            trained=pl.col("step").is_not_null() & pl.col("trained_in").is_not_null(),
        )
        .with_columns(trained_in=pl.when("trained").then("trained_in"))
        .drop("step")
    )  # fmt: skip


def tokens(scan: Scan, run_teacher: str, texts: Texts | None = None) -> pl.LazyFrame:
    """One row a token of an answer; `text` is null without `texts`.

    The three log-probs: of the policy that sampled, of the trainer when it first met the rollout
    (null where it did not), of the round's teacher (null where it was not scored); `advantage` is
    teacher_logprob - sampling_logprob. Where they were kept: the round's teacher's entropy, and the
    exact divergences that `videoopd rescore` made (`reverse_kl` is KL(pi_v || q) at the token, of
    which -advantage is the one-sample estimate).
    """
    import polars as pl

    lists = {
        "completion_token_ids": "token_id",
        "sampling_logprobs": "sampling_logprob",
        "student_logprobs": "student_logprob",
        "teacher_logprobs": "teacher_logprob",
        "teacher_entropies": "teacher_entropy",
        "forward_kl": "forward_kl",
        "reverse_kl": "reverse_kl",
        "js": "js",
    }
    of_score = ["rollout_id", "teacher_hash"]
    entropies = scan("teacher_scores").select(*of_score, "teacher_entropies")
    divergences = scan("divergences").select(*of_score, "forward_kl", "reverse_kl", "js")
    absent = pl.col("completion_token_ids").list.eval(pl.element().cast(pl.Float32) * None)
    frame = (
        trajectories(scan, run_teacher)
        .select(
            "rollout_id", "example_id", "policy_version", "teacher_hash", "completion_token_ids",
            "sampling_logprobs", "student_logprobs", "teacher_logprobs", "selected", "trained",
            "trained_in",
            position=pl.int_ranges(pl.col("completion_token_ids").list.len()),
        )
        .join(entropies, on=of_score, how="left", maintain_order="left")
        .join(divergences, on=of_score, how="left", maintain_order="left")
        .with_columns(pl.col([name for name in lists if name != "completion_token_ids"])
                      .fill_null(absent))
        .filter(pl.col("completion_token_ids").list.len() > 0)
        .explode("position", *lists)
        .rename(lists)
        .with_columns(advantage=pl.col("teacher_logprob") - pl.col("sampling_logprob"))
    )  # fmt: skip
    text = pl.lit(None, pl.String) if texts is None else _text(texts)
    names = (
        "rollout_id", "example_id", "policy_version", "position", "token_id", "text",
        "sampling_logprob", "student_logprob", "teacher_logprob", "advantage", "teacher_entropy",
        "forward_kl", "reverse_kl", "js", "selected", "trained", "trained_in",
    )  # fmt: skip
    return frame.with_columns(text=text).select(names)


def rounds_of(scan: Scan, run_teacher: str) -> pl.LazyFrame:
    """One row a round: policy_version, teacher_hash, question_hash, trained_in.

    The question is the one whose answers focus read, before that the one asked last.
    """
    import polars as pl

    focused = (
        scan("selections")
        .select("policy_version", "question_hash")
        .group_by("policy_version")
        .agg(of_focus=pl.col("question_hash").first())
    )
    asked = (
        scan("teacher_predictions")
        .select("teacher_hash", "question_hash", "written_at")
        .group_by("teacher_hash")
        .agg(asked_last=pl.col("question_hash").sort_by("written_at").last())
    )

    return (
        round_teachers(scan, run_teacher)
        .join(focused, on="policy_version", how="left")
        .join(asked, on="teacher_hash", how="left")
        .with_columns(question_hash=pl.coalesce("of_focus", "asked_last"))
        .drop("of_focus", "asked_last")
    )


def round_teachers(scan: Scan, run_teacher: str) -> pl.LazyFrame:
    """One row a round that has rollouts: policy_version, teacher_hash, trained_in.

    The teacher is the one its update names; before that the run's, or another one that has scored
    the round last.
    """
    import polars as pl

    updates = scan("updates").select(
        pl.col("parent_version").alias("policy_version"),
        pl.col("teacher_hash").alias("of_update"),
        pl.col("policy_version").alias("trained_in"),
    )
    newest = (
        scan("teacher_scores")
        .select("policy_version", "teacher_hash", "written_at")
        .group_by("policy_version")
        .agg(of_score=pl.col("teacher_hash").sort_by("written_at").last())
    )
    began_with = pl.col("of_score").is_in(split_hashes(run_teacher))
    of_score = pl.when(began_with).then(pl.lit(run_teacher)).otherwise("of_score")
    return (
        scan("rollouts")
        .select("policy_version")
        .unique()
        .join(updates, on="policy_version", how="left")
        .join(newest, on="policy_version", how="left")
        .select(
            "policy_version",
            pl.coalesce("of_update", of_score, pl.lit(run_teacher)).alias("teacher_hash"),
            "trained_in",
        )
    )


def teachers_of_round(scan: Scan, run_teacher: str, version: int) -> str:
    """`teacher_hash` of `round_teachers` of one round, of which alone rows are read."""
    import polars as pl

    def of_round(name: str) -> pl.LazyFrame:
        column = "parent_version" if name == "updates" else "policy_version"
        return scan(name).filter(pl.col(column) == version)

    known = round_teachers(of_round, run_teacher).select("teacher_hash").collect().to_series()
    return known.item() if len(known) else run_teacher


def own_scores(scores: pl.DataFrame, of_round: str) -> pl.DataFrame:
    """Of scores (rollout_id, teacher_hash, ...) those by the rollouts' own teachers. `of_round`:
    the teachers of their round, as `updates` names them."""
    import polars as pl

    mine = scores.filter(pl.col("teacher_hash").is_in(split_hashes(of_round)))
    return scored_once(mine, of_round)


def scored_once(scores: pl.DataFrame, teachers: str) -> pl.DataFrame:
    """Of scores by `teachers` those that count: of several each rollout has one, and where two have
    scored it, none does."""
    import polars as pl

    several = len(split_hashes(teachers)) > 1
    return scores.filter(pl.len().over("rollout_id") == 1) if several else scores


def _as_they_are(rollouts: pl.LazyFrame, scan: Scan) -> pl.LazyFrame:
    return rollouts


def _with_own_teacher(rollouts: pl.LazyFrame, scan: Scan) -> pl.LazyFrame:
    """Of a round with several teachers each rollout with its own, and what that one was asked."""
    import polars as pl

    joined = pl.col("teacher_hash").str.contains("+", literal=True)
    scored = scan("teacher_scores").select("rollout_id", "teacher_hash", scored=pl.lit(1))
    asked = scan("teacher_predictions").sort("written_at").group_by("example_id", "teacher_hash")
    focused = scan("selections").select("rollout_id", of_focus="question_hash")
    own = (
        rollouts.filter(joined)
        .select("rollout_id", "example_id", pl.col("teacher_hash").str.split("+"))
        .explode("teacher_hash")
        .join(scored, on=["rollout_id", "teacher_hash"], how="left")
        .join(
            asked.agg(asked_last=pl.col("question_hash").last()),
            on=["example_id", "teacher_hash"],
            how="left",
        )
        .sort("scored", pl.col("asked_last").is_null(), descending=[True, False], nulls_last=True)
        .group_by("rollout_id", maintain_order=True)
        .agg(
            pl.col("teacher_hash", "asked_last").first(),
            is_known=(pl.col("scored").sum() == 1)
            | ((pl.col("scored").sum() == 0) & (pl.col("asked_last").count() == 1)),
        )
        .filter("is_known")
        .join(focused, on="rollout_id", how="left")
        .select(
            "rollout_id",
            own_hash="teacher_hash",
            own_question=pl.coalesce("of_focus", "asked_last"),
        )
    )
    return (
        rollouts.join(own, on="rollout_id", how="left", maintain_order="left")
        .with_columns(
            teacher_hash=pl.when(joined).then("own_hash").otherwise("teacher_hash"),
            question_hash=pl.when(joined).then("own_question").otherwise("question_hash"),
        )
        .drop("own_hash", "own_question")
    )


def _text(texts: Texts) -> pl.Expr:
    import polars as pl

    def column(ids: pl.Series) -> pl.Series:
        known = ids.unique().drop_nulls()
        words = pl.Series(list(texts(known.to_list())), dtype=pl.String)
        return ids.replace_strict(known, words, return_dtype=pl.String)

    return pl.col("token_id").map_batches(column, return_dtype=pl.String, is_elementwise=True)
