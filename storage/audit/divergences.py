"""The audit's link for `divergences`: `videoopd rescore` made them of kept scores, and they can be.

Both full distributions would be needed to compute them again (`rescore` in a copy of the run does
that). Without them, every pair of stored log-probs still bounds its token's divergences from below:
joining all other tokens to one outcome can only bring two distributions nearer, so that none is
smaller than the same divergence of (p, 1 - p) and (q, 1 - q), p and q being the probabilities of
the sampled token (the data processing inequality, Cover and Thomas, Elements of Information Theory,
2.8). From above, JS is at most log 2 and at most a quarter of the sum of both KLs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from storage.audit.links import BrokenLink, Checked, unique

if TYPE_CHECKING:
    import polars as pl

    from storage.runs.run import Run

COLUMNS = ("forward_kl", "reverse_kl", "js")
TOLERANCE = 1e-3
"""Nats; of sums over a vocabulary in float32. What the row itself says its log-probs are off by is
added, with a factor for what a log-ratio does to it."""
PER_MISMATCH = 10.0


def divergences(run: Run) -> Checked:
    """Checks that each row is of a score that kept hidden states, and within the bounds at each
    token."""
    unique(run, "divergences")
    versions = run.divergences().select("policy_version").unique().collect().to_series().sort()
    count = 0
    for version in versions:
        rows = _with_score(run, version)
        _lengths(rows)
        _bounds(rows)
        count += rows.height
    return Checked(count, "divergences")


def _with_score(run: Run, version: int) -> pl.DataFrame:
    """The rows of a round beside the rollout's and the score's log-probs."""
    import polars as pl

    of_round = pl.col("policy_version") == version
    mine = ("max_teacher_mismatch", "max_student_mismatch")
    keys = ["rollout_id", "teacher_hash"]
    rollouts = run.rollouts().filter(of_round).select(
        "rollout_id", "sampling_logprobs", tokens=pl.col("completion_token_ids").list.len()
    )  # fmt: skip
    hidden = pl.col("scorer").str.contains("hidden states", literal=True)
    scores = run.teacher_scores().filter(of_round).select(*keys, "teacher_logprobs", kept=hidden)
    rows = (
        run.divergences().filter(of_round).select(*keys, *COLUMNS, *mine)
        .join(rollouts, on="rollout_id", how="left")
        .join(scores, on=keys, how="left")
        .sort(keys)
        .collect()
    )  # fmt: skip
    for row in rows.filter(pl.col("tokens").is_null()).iter_rows(named=True):
        raise BrokenLink(f"divergences, {row['rollout_id']}: policy {version} has no such rollout")
    for row in rows.filter(~pl.col("kept").fill_null(False)).iter_rows(named=True):
        raise BrokenLink(
            f"divergences, {row['rollout_id']}: teacher {row['teacher_hash']} has no score of it"
            " with hidden states to come from"
        )
    return rows


def _lengths(rows: pl.DataFrame) -> None:
    import polars as pl

    for name in COLUMNS:
        length = pl.col(name).list.len()
        for row in rows.filter(length != pl.col("tokens")).head(1).iter_rows(named=True):
            where = f"divergences, {row['rollout_id']}"
            raise BrokenLink.at(where, f"the length of {name}", len(row[name]), row["tokens"])


def _bounds(rows: pl.DataFrame) -> None:
    import polars as pl

    if rows.is_empty():
        return
    off = pl.col("max_teacher_mismatch") + pl.col("max_student_mismatch")
    lists = (*COLUMNS, "sampling_logprobs", "teacher_logprobs")
    tokens = (
        rows.filter(pl.col("tokens") > 0)
        .with_columns(position=pl.int_ranges("tokens"), slack=TOLERANCE + PER_MISMATCH * off)
        .explode("position", *lists)
        .with_columns(
            p=pl.col("sampling_logprobs").cast(pl.Float64).exp(),
            q=pl.col("teacher_logprobs").cast(pl.Float64).exp(),
        )
        .with_columns(m=(pl.col("p") + pl.col("q")) / 2)
    )
    js = (_binary_kl("p", "m") + _binary_kl("q", "m")) / 2
    least = {
        "forward_kl": _binary_kl("q", "p"),
        "reverse_kl": _binary_kl("p", "q"),
        "js": js,
    }
    quarter = (pl.col("forward_kl") + pl.col("reverse_kl")) / 4
    most = {"js": pl.min_horizontal(pl.lit(math.log(2)), quarter)}
    for name in COLUMNS:
        value = pl.col(name)
        checks = [(~value.is_finite() | (value < 0), pl.lit(0.0), "at least")]
        checks.append((value < least[name] - pl.col("slack"), least[name], "at least"))
        if name in most:
            checks.append((value > most[name] + pl.col("slack"), most[name], "at most"))
        for wrong, bound, words in checks:
            for row in tokens.filter(wrong).with_columns(bound=bound).head(1).iter_rows(named=True):
                where = f"divergences, {row['rollout_id']}, token {row['position']}"
                raise BrokenLink.at(where, name, row[name], f"{words} {row['bound']:.6g}")


def _binary_kl(a: str, b: str) -> pl.Expr:
    """KL((a, 1 - a) || (b, 1 - b)) of columns of probabilities; 0 log 0 is 0."""
    import polars as pl

    tiny = 1e-30

    def term(x: pl.Expr, y: pl.Expr) -> pl.Expr:
        return pl.when(x <= 0).then(0.0).otherwise(x * (x / y.clip(lower_bound=tiny)).log())

    p, q = pl.col(a), pl.col(b)
    return term(p, q) + term((1 - p).clip(lower_bound=0.0), (1 - q).clip(lower_bound=0.0))
