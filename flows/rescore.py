"""`videoopd rescore`: exact divergences of rounds whose scores kept the teacher's hidden states.

It needs the videos, the policy that sampled and the teacher's `lm_head`; none of the teacher's
other weights. What has a row in `divergences` is not computed again. It writes rows with the
config that the round was scored with, or the one that it is given (paths may have moved).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import polars as pl
from rich import box
from rich.table import Table

from flows.audit.named import config_of, grouped
from flows.console.progress import is_quiet, progress
from flows.console.report import console
from flows.stage.appending import appending
from flows.stage.typed_config import config_words
from opd_core.config.load import Config
from opd_core.types import Policy, Rollout, VideoOPDError
from storage.audit.links import BrokenLink
from storage.runs.run import Run

if TYPE_CHECKING:
    from opd_core.scoring.rescoring import Kept

HAS_HIDDEN = pl.col("scorer").str.contains("hidden states", literal=True)
"""Of rows of `teacher_scores`; a column that is quick to read."""


def rescore_run(run: Run, number: int | None = None, config: Config | None = None) -> None:
    """Append what `divergences` lacks of round `number` (None: of all), and print the means.

    Raises `VideoOPDError` where no score has hidden states.
    """
    added = 0
    for version, teacher_hash, teacher_id, digest in _scored(run, number):
        added += _rescore(run, version, teacher_hash, teacher_id, config or _config(run, digest))
    out = console()
    if not is_quiet():
        out.print(_summary(run, number))
    out.print(f"{added:,} rollouts rescored; a row each in divergences", markup=False)


def _scored(run: Run, number: int | None) -> list[tuple[int, str, str, str]]:
    """(policy_version, teacher_hash, teacher_id and config_hash of its newest row) that have hidden
    states."""
    rows = run.teacher_scores().filter(HAS_HIDDEN)
    if number is not None:
        rows = rows.filter(pl.col("policy_version") == number - 1)
    scored = (
        rows.select("policy_version", "teacher_hash", "teacher_id", "config_hash", "written_at")
        .sort("written_at", maintain_order=True)
        .group_by("policy_version", "teacher_hash")
        .agg(pl.col("teacher_id", "config_hash").last())
        .sort("policy_version", "teacher_hash")
        .collect()
        .rows()
    )
    if not scored:
        which = "no round" if number is None else f"round {number}"
        verb = "has" if number is None else "has no"
        raise VideoOPDError(
            f"{which} of run {run.path} {verb} scores with the teacher's hidden states; score with "
            "score.hidden_states = true, which holds for rounds that are scored from then on"
        )
    return scored


def _config(run: Run, digest: str) -> Config:
    try:
        return config_of(run, digest)
    except BrokenLink as error:
        raise VideoOPDError(f"{error}; restore it from a copy of the run") from None


def _rescore(run: Run, version: int, teacher_hash: str, teacher_id: str, config: Config) -> int:
    """Rescore one round and teacher; returns the number of rows added."""
    of_one = config.with_teacher(teacher_id)
    this = (pl.col("policy_version") == version) & (pl.col("teacher_hash") == teacher_hash)
    scored = run.teacher_scores().filter(this & HAS_HIDDEN).select("rollout_id").collect()
    done = run.divergences().filter(this).select("rollout_id").collect()
    todo = set(scored["rollout_id"]) - set(done["rollout_id"])
    rows = run.read("rollouts", Rollout, pl.col("policy_version") == version)
    work = grouped(run, version, [r for r in rows if r.rollout_id in todo])
    if not work:
        return 0
    run.begin("rescore", version, config_words)  # refused before weights are read
    policy = _policy(run, version, [r for _, answers in work for r in answers])
    from opd_core.model.tree_model import set_threads
    from opd_core.scoring.rescoring import rescore

    set_threads(config.machine.threads)
    teachers = [teacher.path for teacher in config.all_teachers]
    writer = Run.create(run.path, config.to_json(), config.hash, config.student.path, *teachers)
    flush_seconds = config.storage.flush_seconds
    begun = writer.begin("rescore", version, config_words)
    if begun.again:
        with writer.exclusive("round"):
            begun.new_take()
    with (
        writer.exclusive("rescore"),
        progress("rescore", len(work)) as advance,
        appending(writer, "divergences", "rescore", version, flush_seconds) as divergences,
    ):
        for batch in rescore(of_one, policy, teacher_hash, work, _load(run, teacher_hash)):
            divergences.add(batch)
            advance(batch.examples)
    return divergences.added


def _policy(run: Run, version: int, rollouts: Sequence[Rollout]) -> Policy:
    ref = run.policy(version)
    for rollout in rollouts:
        if rollout.policy_hash != ref.weights_hash:
            raise VideoOPDError(
                f"rollout {rollout.rollout_id} was sampled by weights {rollout.policy_hash} and "
                f"policy {version} has {ref.weights_hash}; restore the run from a copy"
            )
    return ref


def _load(run: Run, teacher_hash: str) -> Callable[[Sequence[str]], Mapping[str, Kept]]:
    """Read hidden states without making a Python number of each."""
    from opd_core.scoring.rescoring import Kept

    def load(ids: Sequence[str]) -> dict[str, Kept]:
        rows = (
            run.teacher_scores()
            .filter(pl.col("rollout_id").is_in(ids) & (pl.col("teacher_hash") == teacher_hash))
            .select("rollout_id", "teacher_logprobs", "hidden_states")
            .collect()
        )
        states: dict[str, Kept] = {}
        hidden = rows["hidden_states"]
        for i, (rollout_id, logprobs) in enumerate(rows.drop("hidden_states").iter_rows()):
            flat_N = hidden[i].explode().to_numpy()
            states[rollout_id] = Kept(flat_N.reshape(len(logprobs), -1), logprobs)
        return states

    return load


def _summary(run: Run, number: int | None) -> Table:
    """Means over tokens, a line a round and teacher."""
    divergences = run.divergences()
    if number is not None:
        divergences = divergences.filter(pl.col("policy_version") == number - 1)
    estimate = (
        run.teacher_scores()
        .select("rollout_id", "teacher_hash", "teacher_logprobs")
        .join(run.rollouts().select("rollout_id", "sampling_logprobs"), on="rollout_id")
    )
    names = ("forward_kl", "reverse_kl", "js")
    each = divergences.join(estimate, on=["rollout_id", "teacher_hash"])
    tokens = each.explode(*names, "sampling_logprobs", "teacher_logprobs")
    rows = (
        tokens.group_by("policy_version", "teacher_hash")
        .agg(
            pl.col("rollout_id").n_unique().alias("rollouts"),
            pl.len().alias("tokens"),
            *(pl.col(name).mean() for name in names),
            (pl.col("sampling_logprobs") - pl.col("teacher_logprobs")).mean().alias("k1"),
            pl.col("max_teacher_mismatch").max(),
            pl.col("max_student_mismatch").max(),
        )
        .sort("policy_version", "teacher_hash")
        .collect()
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="nats a token, whole vocabulary")
    headings = ("round", "rollouts", "tokens", "forward KL", "reverse KL", "JS",
                "reverse KL, k1", "teacher off by", "student off by")  # fmt: skip
    for heading in headings:
        table.add_column(heading, justify="right")
    for version, _, rollouts, count, *values, teacher, student in rows.iter_rows():
        numbers = [f"{value:.4f}" for value in values]
        table.add_row(f"{version + 1}", f"{rollouts:,}", f"{count:,}", *numbers,
                      f"{teacher:.1e}", f"{student:.1e}")  # fmt: skip
    return table
