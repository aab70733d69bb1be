"""The link from a selection to what focus decided it from."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import polars as pl

from flows.audit.links import IOU_TOLERANCE
from flows.audit.named import config_hash_of, config_of, teachers_of
from flows.teachers import Teachers
from opd_core.config.load import Config
from opd_core.focus import select as curriculum
from opd_core.types import make_seed
from storage.audit import links as store
from storage.audit.links import BrokenLink, Checked

if TYPE_CHECKING:
    from storage.runs.run import Run


def selections(run: Run) -> Checked:
    """What focus decided comes out again, from the stored inputs and the config of the round."""
    count = 0
    for row in store.settled(run):
        this = pl.col("policy_version") == row["parent_version"]
        stored = run.selections().filter(this).sort("rollout_id").collect()
        removed = _no_longer_annotated(run, stored)
        config = config_of(run, config_hash_of(run, "selections", row["parent_version"]))
        teachers = teachers_of(run, config, row, stored)
        _made_with(run, stored, config, teachers, row["parent_version"])
        stored = stored.filter(pl.col("reason") != curriculum.GONE)
        asks = curriculum.needs_predictions(config.focus)
        scores = run.teacher_scores().filter(this & teachers.scores())
        again = curriculum.select(
            run.rollouts().filter(this & ~pl.col("rollout_id").is_in(removed)),
            run.teacher_predictions().filter(teachers.predictions() if asks else pl.lit(False)),
            config.focus,
            _focus_seed(config, row["parent_version"]),
            curriculum.sampling_k1s(
                run.rollouts().filter(this).select("rollout_id", "sampling_logprobs"),
                scores.select("rollout_id", "teacher_logprobs"),
            ),
        ).collect()
        has_score = scores.select("rollout_id").collect()
        unscored = pl.col("selected") & ~pl.col("rollout_id").is_in(
            has_score["rollout_id"].implode()
        )
        unscored &= pl.lit(config.needs_teacher_scores or curriculum.needs_scores(config.focus))
        again = again.with_columns(
            reason=pl.when(unscored).then(pl.lit(curriculum.NO_SCORE)).otherwise("reason"),
            selected=pl.col("selected") & ~unscored,
        ).sort("rollout_id")
        _same_rows(stored, again)
        count += stored.height + len(removed)
    copied = run.teacher_predictions().filter(pl.col("reused_from").is_not_null())
    foreign = copied.select(pl.len()).collect().item()
    notes = (f"{foreign:,} of the teacher's answers are copies from other runs",)
    return Checked(count, "selections", notes if foreign else ())


def _no_longer_annotated(run: Run, stored: pl.DataFrame) -> list[str]:
    """Rollouts that focus left out because their annotation was gone, as `data_changes` says."""
    rows = stored.filter(pl.col("reason") == curriculum.GONE)
    left_train = run.data_changes().filter(pl.col("split").is_null() | (pl.col("split") == "eval"))
    known = set(left_train.select("item_id").collect()["item_id"])
    for rollout_id, example_id, selected in rows.select(
        "rollout_id", "example_id", "selected"
    ).iter_rows():
        where = f"selections, {rollout_id}"
        if selected or example_id not in known:
            raise BrokenLink(f"{where}: its example was never taken out of the annotations")
    return rows["rollout_id"].to_list()


def _made_with(
    run: Run, stored: pl.DataFrame, config: Config, teachers: Teachers, version: int
) -> None:
    """Each row names the settings and seed of the round's config, one question to its teacher (or
    none, where its curriculum asks nothing), and table versions that there were."""
    asks = curriculum.needs_predictions(config.focus)
    expected = {
        # Without the keys that have come since; those the stored config does not have.
        "settings": config.focus.model_dump_json(exclude_unset=True),
        "seed": _focus_seed(config, version),
    }
    newest = run.tables.versions()
    for row in stored.iter_rows(named=True):
        where = f"selections, {row['rollout_id']}"
        question = teachers.question_of(row["example_id"]) if asks else None
        for name, value in (*expected.items(), ("question_hash", question)):
            if row[name] != value:
                raise BrokenLink.at(where, name, row[name], value)
        for name, table in (
            ("rollouts_version", "rollouts"),
            ("predictions_version", "teacher_predictions"),
            ("scores_version", "teacher_scores"),
        ):
            if not 1 <= row[name] <= newest[table]:
                raise BrokenLink.at(where, name, row[name], f"1 ... {newest[table]}")


def _focus_seed(config: Config, version: int) -> int:
    return make_seed(config.run.seed, "focus", version, "", 0)


def _same_rows(stored: pl.DataFrame, again: pl.DataFrame) -> None:
    if stored["rollout_id"].to_list() != again["rollout_id"].to_list():
        counts = Counter(stored["rollout_id"]), Counter(again["rollout_id"])
        odd = min(name for name in counts[0] | counts[1] if counts[0][name] != counts[1][name])
        where = f"selections, {odd}"
        raise BrokenLink.at(where, "the number of its rows", counts[0][odd], counts[1][odd])
    for was, now in zip(
        stored.select(again.columns).iter_rows(named=True),
        again.iter_rows(named=True),
        strict=True,
    ):
        for name, value in now.items():
            same = was[name] == value
            if isinstance(value, float) and isinstance(was[name], float):
                same = abs(was[name] - value) <= IOU_TOLERANCE
            if not same:
                raise BrokenLink.at(f"selections, {was['rollout_id']}", name, was[name], value)
