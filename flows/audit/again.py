"""The links for which something is done again: videos decoded, answers sampled, answers scored."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import polars as pl

from flows.audit.named import config_hash_of, config_of, grouped, selected_of, teachers_of
from flows.console.report import cut
from flows.teachers import EXAMPLE_OF_ROLLOUT
from opd_core.config.load import Config
from opd_core.types import GroundingExample, Policy, Rollout, TeacherScore
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
    of_config: dict[str, dict[str, Any]] = {}
    """config hash -> the row of the last update with such rollouts"""
    for row in store.settled(run):
        version = row["parent_version"]
        digest = config_hash_of(run, "rollouts", version)
        owner, of_config[digest] = seen.setdefault(digest, {}), row
        for example, mine in grouped(run, version, selected_of(run, version)):
            owner.setdefault(example.example_id, (example, []))[1].extend(mine)
    count, files = 0, set()
    for digest, items in sorted(seen.items()):
        rows = sorted(items.values(), key=lambda item: (item[0].video_path, item[0].example_id))
        paths = sorted({e.video_path for e, _ in rows})
        chosen = set(generator.sample(paths, max(1, round(share * len(paths)))))
        rows = [row for row in rows if row[0].video_path in chosen]
        for config, answering, own in _answered(
            run, config_of(run, digest), of_config[digest], rows
        ):
            for compared in prompts_again(config, answering or run.policy(0), own):
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
        for of_one, answering, own in _answered(run, config, row, rows):
            sampler = answering or sampler_of(config, version, run.policy)
            again = sampled_again(of_one, sampler, own, share, generator, tolerance)
            _unchanged(run, again)
            compared.append(again)
    return replace(_together(compared), let_go=tuple(let_go))


def _answered(
    run: Run,
    config: Config,
    row: dict[str, Any],
    rows: list[tuple[GroundingExample, list[Rollout]]],
) -> Iterator[tuple[Config, Policy | None, list[tuple[GroundingExample, list[Rollout]]]]]:
    """The examples of a round by who has answered them: each teacher where they do; None: others.
    `row`: of the round's update."""
    if config.rollout.source != "teacher":
        yield config, None, rows
        return
    for teacher in teachers_of(run, config, row):
        own = [pair for pair in rows if teacher.takes(pair[0].example_id)]
        if own:
            yield teacher.config, teacher.policy(row["parent_version"]), own


def scored(run: Run, share: float, tolerance: float | None, generator: random.Random) -> Checked:
    """A random share of each committed round that was scored, scored again by its teacher."""
    from opd_core.audit.again import scored_again

    compared = []
    for row in store.settled(run):
        if not row["uses_scores"]:
            continue
        version = row["parent_version"]
        this = pl.col("policy_version") == version
        config = config_of(run, config_hash_of(run, "teacher_scores", version))
        score = config.score.model_copy(update={"hidden_states": False})
        config = config.model_copy(update={"score": score})
        of_round = run.read("rollouts", Rollout, this)
        # A copy was in none of this round's forward passes: one from this run is that of another
        # row, which `scores` compares; one from elsewhere is scored again, within rounding.
        computed = pl.col("reused_from").is_null()
        foreign = ~computed & ~pl.col("reused_from").str.starts_with(f"{run.run_id}/")
        kinds = ((computed, False), (foreign, True))
        for teacher, (rows, elsewhere) in product(teachers_of(run, config, row), kinds):
            mine = this & teacher.rows(EXAMPLE_OF_ROLLOUT) & rows
            scores = run.read("teacher_scores", TeacherScore, mine, ("hidden_states",))
            ids = {s.rollout_id for s in scores}
            if not ids:
                continue
            asked = grouped(run, version, [r for r in of_round if r.rollout_id in ids])
            again = scored_again(
                teacher.config, teacher.policy(version), asked, scores, share, generator,
                tolerance, elsewhere,
            )  # fmt: skip
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
