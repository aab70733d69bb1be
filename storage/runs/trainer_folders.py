"""What the trainer keeps of the newest policy and no sampler loads: `RUN/trainer/v<version>`.

No part of a commit: a policy without it is whole, and its training goes on with a new optimiser. It
is published just before its policy, so that a run killed at any moment goes on as if it had not
been: the folder belongs to a policy where its manifest names the policy's weights.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from opd_core.types import Policy
from storage.files import disk_troubles, put_folder, remove_folder, write_json
from storage.runs.policies import MANIFEST_FILE, read_manifest

TRAINER = "trainer"
OLDER_FILE = "optimizer.pt"
"""In the policy's own folder, in runs of older programs."""


def staging_folder(run: Path, version: int) -> Path:
    """A place for what training policy `version` leaves; what killed attempts left is removed."""
    folder = run / TRAINER
    for leftover in list(folder.glob(".*-*")):
        shutil.rmtree(leftover)
    return folder / f".v{version}.staging-{uuid.uuid4().hex[:8]}"


def publish(staging: Path, run: Path, policy: str, weights_hash: str) -> None:
    """Moves it to where `of_policy` looks for that of the folder `policy`, with these weights."""
    with disk_troubles(staging.parent):
        write_json(staging / MANIFEST_FILE, {"weights_hash": weights_hash})
        put_folder(staging, run / TRAINER / policy)


def of_policy(run: Path, policy: Policy) -> Path | None:
    """What the training of `policy` left; None: nothing, or its base is meant."""
    if policy.version == 0:
        return None
    folder = run / TRAINER / policy.path.name
    if not folder.is_dir():
        return policy.path if (policy.path / OLDER_FILE).is_file() else None
    return folder if read_manifest(folder).get("weights_hash") == policy.weights_hash else None


def keep_only(run: Path, policy: Policy) -> None:
    """Removes what the training of all other policies left."""
    for folder in (run / TRAINER).glob("v*"):
        if folder.name != policy.path.name:
            remove_folder(folder)
