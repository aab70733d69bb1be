"""Which older policies keep their weights, by `[policies]`; asked when a round is finished."""

from __future__ import annotations

import json

from flows.console.report import accuracy
from flows.stage.prepare import Work
from opd_core.config.sections import PoliciesSection
from storage.runs.letting_go import let_go
from storage.runs.marks import Checkpoint
from storage.runs.run import Run


def let_older_go(work: Work) -> None:
    """Let the weights go that the config does not keep, and make good what a kill has left."""
    settings, best = work.config.policies, best_policy(work.run)
    let_go(work.run, lambda checkpoint: _because(checkpoint, settings, best))


def best_policy(run: Run) -> int | None:
    """The policy above 0 with the highest mIoU on the present eval split, of those that have their
    weights, the newer one of equals; None where none is evaluated."""
    there = {c.version for c in run.checkpoints() if c.in_force and c.let_go is None}
    means = {v: m["strict_miou"] for v, m in accuracy(run).items() if v in there}
    known = [(mean, version) for version, mean in means.items() if mean is not None]
    return max(known)[1] if known else None


def _because(checkpoint: Checkpoint, settings: PoliciesSection, best: int | None) -> str | None:
    """By which settings the weights go; None where they stay."""
    if settings.keep == "all" or ("tagged" in settings.keep and checkpoint.tags):
        return None
    if checkpoint.in_force:
        if "best" in settings.keep and checkpoint.version == best:
            return None
        if settings.every and checkpoint.version % settings.every == 0:
            return None
    said = [f"policies.keep = {json.dumps(settings.keep)}"]
    said += [f"policies.every = {settings.every}"] if settings.every else []
    said += [] if checkpoint.in_force else ["a rerun has superseded it"]
    return ", ".join(said)
