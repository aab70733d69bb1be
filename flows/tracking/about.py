"""How a run is named and described to a tracker: its config, hashes, the commit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from opd_core.tracker import About
from storage.asking.config_in_force import config_in_force, flat
from storage.tables.provenance import git_commit

if TYPE_CHECKING:
    from storage.runs.run import Run

ID_LETTERS, NAME_LETTERS = 6, 64


def about(run: Run, project: str, folder: Path) -> About:
    """`folder`: the tracker's own."""
    rows = run.updates().select("policy_version", "policy_hash", "git_commit")
    updates = rows.sort("policy_version").collect().rows()
    version, policy_hash, commit = (
        updates[-1] if updates else (0, run.committed(0).weights_hash, git_commit())
    )
    config = config_in_force(run)
    identity = {
        "run.id": run.run_id,
        "run.created_at": run.created_at,
        "hash.config": config.hash,
        "hash.student": run.committed(0).weights_hash,
        "hash.teacher": run.teacher_hash,
        "hash.policy": policy_hash,
        "policy_version": version,
        "git_commit": commit,
    }
    told = {
        key: value if isinstance(value, str | int | float) else str(value)
        for key, value in (flat(config.content) | identity).items()
        if value is not None
    }
    return About(name_of(run), project, told, folder)


def name_of(run: Run) -> str:
    """`tiny-1f0c3a`, in letters that every tracker takes; `tiny-1f0c3a-rerun2` where rows were
    superseded since."""
    reruns = run.takes().reruns
    again = f"-rerun{reruns[-1].sequence}" if reruns else ""
    folder = re.sub(r"[^A-Za-z0-9_.-]+", "-", run.path.name)[:NAME_LETTERS]
    return f"{folder}-{run.run_id.replace('-', '')[:ID_LETTERS]}{again}"
