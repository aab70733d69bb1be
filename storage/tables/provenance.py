"""Who wrote a row: run, config, commit and stage execution."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Provenance:
    run_id: str
    stage: str
    policy_version: int | None
    config_hash: str
    git_commit: str | None
    attempt: str
    """Id of the stage execution."""
    take: int = 0
    """How often the stage had been begun again in this round."""

    def transaction_properties(self) -> dict[str, str]:
        """What a table version says about itself; absent is left out."""
        content = {
            "run_id": self.run_id,
            "stage": self.stage,
            "policy_version": self.policy_version,
            "config_hash": self.config_hash,
            "git_commit": self.git_commit,
            "attempt": self.attempt,
            "take": self.take,
        }
        return {name: str(value) for name, value in content.items() if value is not None}


@lru_cache
def git_commit() -> str | None:
    """The commit this program runs from, `-dirty` where it was changed; None outside a checkout.

    A package installed below somebody else's repository is in no checkout of ours, hence the
    question whether git tracks this very file.
    """
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    return _git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")


def _git(*arguments: str) -> str | None:
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
