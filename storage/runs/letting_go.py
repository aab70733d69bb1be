"""Lets the weights of older policies go, and names those that people want to keep.

The record comes before the removal (`marks.py`): killed between the two, or in the middle of the
second, the next call removes the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from opd_core.types import VideoOPDError
from storage import locks
from storage.runs import marks, run_folder
from storage.runs.marks import Checkpoint

if TYPE_CHECKING:
    from storage.runs.run import Run


def let_go(run: Run, because: Callable[[Checkpoint], str | None]) -> None:
    """Lets weights go: `because` gives the reason of each policy, None where it stays.

    It is not asked of policies that are needed. What an earlier call has recorded and could not
    remove any more is removed, whatever `because` says now.
    """
    with _marking(run):
        needed = _needed(run)
        for checkpoint in run.checkpoints():
            asked = checkpoint.let_go is None and checkpoint.folder not in needed
            if asked and (reason := because(checkpoint)) is not None:
                marks.record(checkpoint.folder, reason)
    for checkpoint in run.checkpoints():
        if checkpoint.let_go is not None:
            marks.remove(checkpoint.folder)


def tag(run: Run, version: int, name: str) -> None:
    """Names a committed policy; a round may be running meanwhile.

    Raises `VideoOPDError` where there is nothing to name, or the name is another policy's.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise VideoOPDError(f"{name!r} is no name of a policy; use letters, digits, . _ and -")
    if name in ("tagged", "best"):
        raise VideoOPDError(f"{name} is a word of policies.keep; choose another name")
    if version == 0:
        raise VideoOPDError("policy 0, the base student, always stays; tag a later policy")
    with _marking(run):
        folder, names = _names(run, version)
        owner = next((c for c in run.checkpoints() if name in c.tags and c.folder != folder), None)
        if owner is not None:
            raise VideoOPDError(
                f"policy {owner.version} in {owner.folder} is tagged {name} already; choose another"
                f" name, or take it off there with `videoopd tag RUN@{owner.version} {name}"
                " --remove`"
            )
        marks.name(folder, (*(n for n in names if n != name), name))


def untag(run: Run, version: int, name: str) -> None:
    """Takes a name off. Raises `VideoOPDError` where the policy has it not."""
    with _marking(run):
        folder, names = _names(run, version)
        if name not in names:
            known = ", ".join(names) or "nothing"
            raise VideoOPDError(
                f"policy {version} of run {run.path} is not tagged {name}; it is tagged {known}"
            )
        marks.name(folder, tuple(n for n in names if n != name))


def _names(run: Run, version: int) -> tuple[Path, tuple[str, ...]]:
    folder = run.policy(version).path
    return folder, next(c.tags for c in run.checkpoints() if c.folder == folder)


def _marking(run: Run) -> AbstractContextManager[None]:
    """One process at a time that writes into manifests of committed policies."""
    return locks.held(run_folder.lock_file(run.path, "policies"), "policies", timeout=60.0)


def _needed(run: Run) -> set[Path]:
    """Folders of the newest policy, and of those that an unfinished round or rerun works with."""
    folders = {c.version: c.folder for c in run.checkpoints() if c.in_force}
    newest = max(folders, default=0)
    versions = {newest, *(stale.policy_version for stale in run.takes().stale())}
    if newest and not run.is_finished(newest):
        versions.add(newest - 1)
    return {folder for version, folder in folders.items() if version in versions}
