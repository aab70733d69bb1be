"""The links for which something is done again: videos decoded, answers sampled, answers scored."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl

from flows.audit.named import config_hash_of, config_of, grouped, selected_of
from flows.console.report import cut
from opd_core.types import GroundingExample, Rollout, TeacherScore
from storage.audit import links as store
from storage.audit.links import BrokenLink, Checked
from storage.stages import round_number

if TYPE_CHECKING:
    from opd_core.audit.again import DoneAgain
    from storage.runs.run import Run


def videos(run: Run, share: float, generator: random.Random) -> Checked:
    """Decode again: a video gives the pixels and the prompt that the rollouts were sampled from.

    All that was trained on, or a random `share` of it.
    """
    from opd_core.audit.again import prompts_again

    seen: dict[str, dict[str, tuple[GroundingExample, list[Rollout]]]] = {}
    """config hash -> example id -> all its rollouts that were trained on"""
    for row in store.settled(run):
        version = row["parent_version"]
        owner = seen.setdefault(config_hash_of(run, "rollouts", version), {})
        for example, mine in grouped(run, version, selected_of(run, version)):
            owner.setdefault(example.example_id, (example, []))[1].extend(mine)
    count, files = 0, set()
    for digest, items in sorted(seen.items()):
        rows = sorted(items.values(), key=lambda item: (item[0].video_path, item[0].example_id))
        paths = sorted({e.video_path for e, _ in rows})
        chosen = set(generator.sample(paths, max(1, round(share * len(paths)))))
        rows = [row for row in rows if row[0].video_path in chosen]
        for compared in prompts_again(config_of(run, digest), run.policy(0), rows):
            _unchanged(run, compared)
            count += compared.rollouts
        files |= chosen
    return Checked(len(files), "videos", (f"{count:,} rollouts have their pixels and prompts",))


def sampled(run: Run, share: float, tolerance: float | None, generator: random.Random) -> Checked:
    """A random share of each committed round, sampled again from the weights that answered."""
    from opd_core.audit.again import sampled_again
    from opd_core.rollout.sampler import sampler_of

    compared, let_go = [], []
    for row in store.settled(run):
        version = row["parent_version"]
        this = pl.col("policy_version") == version
        lost = run.quarantine().filter(this & (pl.col("stage") == "rollout")).select("item_id")
        asked = set(lost.collect()["item_id"])  # they had a place in a batch, too
        rows = grouped(run, version, run.read("rollouts", Rollout, this), asked)
        config = config_of(run, config_hash_of(run, "rollouts", version))
        gone = run.let_go_of(run.committed(version))
        if gone is not None and config.rollout.source in ("student", "truth"):
            round = round_number("rollout", version)
            let_go.append(f"round {round}: the weights of policy {version} were {gone.told()}")
            continue
        sampler = sampler_of(config, version, run.policy, row["teacher_hash"])
        again = sampled_again(config, sampler, rows, share, generator, tolerance)
        _unchanged(run, again)
        compared.append(again)
    return replace(_together(compared), let_go=tuple(let_go))


def scored(run: Run, share: float, tolerance: float | None, generator: random.Random) -> Checked:
    """A random share of each committed round that was scored, scored again by its teacher."""
    from opd_core.audit.again import scored_again
    from opd_core.types import Policy

    compared = []
    for row in store.settled(run):
        if not row["uses_scores"]:
            continue
        version = row["parent_version"]
        mine = (pl.col("policy_version") == version) & (
            pl.col("teacher_hash") == row["teacher_hash"]
        )
        config = config_of(run, config_hash_of(run, "teacher_scores", version))
        score = config.score.model_copy(update={"hidden_states": False})
        config = config.model_copy(update={"score": score})
        teacher = Policy(version, config.teacher.path, row["teacher_hash"])
        of_round = run.read("rollouts", Rollout, pl.col("policy_version") == version)
        # A copy was in none of this round's forward passes: one from this run is that of another
        # row, which `scores` compares; one from elsewhere is scored again, within rounding.
        computed = pl.col("reused_from").is_null()
        foreign = ~computed & ~pl.col("reused_from").str.starts_with(f"{run.run_id}/")
        for rows, elsewhere in ((computed, False), (foreign, True)):
            scores = run.read("teacher_scores", TeacherScore, mine & rows, ("hidden_states",))
            ids = {s.rollout_id for s in scores}
            if not ids:
                continue
            asked = grouped(run, version, [r for r in of_round if r.rollout_id in ids])
            again = scored_again(
                config, teacher, asked, scores, share, generator, tolerance, elsewhere
            )
            _unchanged(run, again)
            compared.append(again)
    return _together(compared)


def _together(compared: list[DoneAgain]) -> Checked:
    tokens = sum(c.tokens for c in compared)
    largest = max((c.largest for c in compared), default=0.0)
    exact = bool(compared) and all(c.bitwise for c in compared)
    how = "equal to the last bit" if exact else f"largest difference {largest:.3g} nats"
    return Checked(sum(c.rollouts for c in compared), "rollouts", (f"{tokens:,} tokens, {how}",))


def _unchanged(run: Run, compared: DoneAgain) -> None:
    difference = compared.difference
    if difference is None:
        return
    rows = run.trajectories().filter(pl.col("rollout_id") == difference.rollout_id)
    path = rows.select("video_path").collect().to_series().to_list()
    where = f"rollouts, {difference.rollout_id} ({path[0] if path else '?'})"
    hint = ""
    if compared.bitwise and "logprobs[" in difference.what:
        hint = " (rounding differs between processors: --tolerance 1e-4 allows for it)"
    raise BrokenLink(
        f"{where}: {difference.what} was {cut(repr(difference.was), 120)} and is now "
        f"{cut(repr(difference.now), 120)}{hint}"
    )
