"""Says on Prefect's page what a finished round brought, where somebody may look."""

from __future__ import annotations

import polars as pl

from flows.numbers.rounds import rounds
from flows.prefect_page.artifacts import round_artifact
from flows.prefect_page.events import Committed, emit_committed
from flows.prefect_page.round_page import RoundPage, markdown
from flows.prefect_page.sending import is_wanted
from flows.stage.prepare import Work
from flows.summaries import RoundSummary, StageSummary
from opd_core.types import StageUse, Update
from storage.runs.run_folder import config_source


def announce(work: Work, after: RoundSummary, evaluation: StageSummary, left: int) -> None:
    """The round's page as an artifact, then the event that it is committed. `left`: how many rounds
    of its flow are still to come."""
    if not is_wanted():
        return
    run, version = work.run, after.policy_version - 1
    (before,) = rounds(run, only=version).to_dicts()
    chosen = run.selections().filter(pl.col("policy_version") == version)
    counts = chosen.group_by("reason").len().sort("len", "reason", descending=[True, False])
    reasons = counts.collect().rows()
    (update,) = run.read("updates", Update, pl.col("policy_version") == after.policy_version)
    uses: list[StageUse] = [use for use in update.stages or () if use.stage != "evaluate"]
    if evaluation.use is not None and evaluation.rows:
        uses.append(evaluation.use)
    source = config_source(run.path)
    assert source is not None, "the round has just been opened by it"
    page = RoundPage(run.path, before, after, reasons, uses)
    about = f"round {page.round} of {run.path}"
    round_artifact(run.path.name, markdown(page), about)
    emit_committed(
        Committed(
            run_id=run.run_id,
            run=run.path,
            config=source.file,
            overrides=source.overrides,
            round=page.round,
            rounds_left=left,
            policy_hash=update.policy_hash,
            miou_before=before["strict_miou"],
            miou_after=after.miou,
            r1_50_before=before["strict_r1_50"],
            r1_50_after=after.r1_50,
            selected=chosen.select(pl.col("selected").sum()).collect().item(),
        )
    )
