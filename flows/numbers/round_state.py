"""The round that a run is at: what of it is there, and the next thing to be done."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from opd_core.types import VideoOPDError

if TYPE_CHECKING:
    from storage.runs.run import Run


@dataclass(frozen=True, slots=True)
class RoundState:
    """How far the round that begins with `policy_version` has come."""

    policy_version: int
    drawn: int
    """Examples."""
    rollouts_per_example: int | None
    """By the config that the run was last used with."""
    rollouts: int
    scored: int
    selected: int | None
    """Rollouts that focus took; None while it has not run."""
    selected_unscored: int
    quarantined: int
    """Items given up in this round."""

    def missing(self) -> str:
        """Say the next thing to be done, in a few words."""
        if self.drawn == 0:
            return "nothing drawn yet"
        if self.selected is None:
            each = self.rollouts_per_example
            of = f" of {self.drawn * each:,}" if each else ""
            return f"{self.rollouts:,}{of} rollouts sampled, {self.scored:,} scored; not focused"
        if self.selected_unscored:
            return f"{self.selected_unscored:,} of {self.selected:,} selected rollouts not scored"
        return f"{self.selected:,} rollouts selected and scored; the update is missing"


def round_state(run: Run) -> RoundState:
    """Count the rows of the current round."""
    versions = run.updates().select(pl.col("policy_version").max()).collect().item()
    version = versions or 0
    this = pl.col("policy_version") == version
    draws, rollouts = run.draws().filter(this), run.rollouts().filter(this)
    scores, selections = run.teacher_scores().filter(this), run.selections().filter(this)
    selected = selections.filter(pl.col("selected")).select("rollout_id")
    return RoundState(
        policy_version=version,
        drawn=count(draws),
        rollouts_per_example=last_config(run).get("rollout", {}).get("rollouts_per_example"),
        rollouts=count(rollouts),
        scored=scores.select(pl.col("rollout_id").n_unique()).collect().item(),
        selected=count(selected) if count(selections) else None,
        selected_unscored=count(selected.join(scores, on="rollout_id", how="anti")),
        quarantined=count(run.quarantine().filter(this)),
    )


def count(frame: pl.LazyFrame) -> int:
    """Count the rows of a query."""
    return int(frame.select(pl.len()).collect().item())


def last_config(run: Run) -> dict[str, Any]:
    """Read the config that the run was last continued with; empty where there is none.

    Raises `VideoOPDError` where it is damaged.
    """
    files = sorted((run.path / "configs").glob("*.json"), key=lambda file: file.stat().st_mtime)
    try:
        return dict(json.loads(files[-1].read_text())) if files else {}
    except (OSError, ValueError):
        raise VideoOPDError(
            f"{files[-1]} cannot be read; restore it from a copy of the run"
        ) from None
