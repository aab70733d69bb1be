"""Checkpoints: published by one rename, known by the hash of their weights, traced by a manifest.

A checkpoint folder is real once a row of `updates` names it. A folder that no row names is what a
killed attempt left, and the next attempt replaces it.
"""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

from opd_core.adapter_folder import ADAPTER_CONFIG, is_adapter
from opd_core.types import Policy, VideoOPDError
from storage.files import disk_troubles, put_folder, write_json
from storage.hashes import WeightsCache, weights_hash

__all__ = ["Policy", "publish", "published_hash", "read_manifest", "rebase", "weights_hash"]

MANIFEST_FILE = "manifest.json"


def staging_folder(policies: Path, version: int) -> Path:
    """An empty folder for policy `version`; what killed attempts at it left is removed."""
    for leftover in list(policies.glob(f".v{version}.*-*")):
        shutil.rmtree(leftover)
    staging = policies / f".v{version}.staging-{uuid.uuid4().hex[:8]}"
    staging.mkdir(parents=True)
    return staging


def publish(
    staging: Path,
    final: Path,
    manifest: dict[str, Any],
    *,
    committed_hash: str | None = None,
    base: Path | None = None,
    cache: WeightsCache | None = None,
) -> Policy:
    """Moves the checkpoint in `staging` to `final`; killed at any moment, it can be done again.

    `manifest` names policy_version, parent_version, parent_hash, config_hash, git_commit,
    created_at, table_versions and run_id; weights_hash is added here. (A table's version is cleaned
    up some rounds later, what its round's tag names never is.) `committed_hash` is what an
    `updates` row says of this version: a committed checkpoint is never replaced by other weights.
    An uncommitted one is kept when its weights are the same and replaced otherwise.
    """
    digest = weights_hash(staging, base, cache)
    if committed_hash not in (None, digest):
        raise VideoOPDError(
            f"policy {manifest['policy_version']} is committed with other weights than"
            f" {staging} holds; remove {staging} and train the next round instead"
        )
    with disk_troubles(final.parent):
        if _holds(final, digest, base, cache):
            shutil.rmtree(staging)
        else:
            write_json(staging / MANIFEST_FILE, {**manifest, "weights_hash": digest})
            put_folder(staging, final)
            if cache:
                cache.moved(staging, final)
    return Policy(int(manifest["policy_version"]), final.resolve(), digest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What was published with a checkpoint. Raises `VideoOPDError` when it is not there."""
    try:
        content: dict[str, Any] = json.loads((folder / MANIFEST_FILE).read_text())
    except (OSError, ValueError):
        raise VideoOPDError(
            f"the checkpoint {folder} has no readable {MANIFEST_FILE}; restore the folder from a"
            " copy of the run"
        ) from None
    return content


def published_hash(folder: Path, cache: WeightsCache | None = None) -> str:
    """The hash of any checkpoint folder's weights; of one that a run has published, checked.

    Raises `VideoOPDError` where they (or, of an adapter, its base's) are no longer those.
    """
    digest = weights_hash(folder, cache=cache)
    if (folder / MANIFEST_FILE).is_file():
        published = read_manifest(folder).get("weights_hash")
        if published not in (None, digest):
            base = " or of the base that its adapter_config.json names"
            raise VideoOPDError(
                f"the weights in {folder}{base if is_adapter(folder) else ''} are not those that"
                f" its {MANIFEST_FILE} was published with; restore them, or remove that file if"
                " they were changed on purpose"
            )
    return digest


def rebase(policies: Path, student: Path) -> None:
    """The adapters of a run name the base student where it is now.

    They name it by its absolute path, so that `from_pretrained` finds it from any folder; it may
    have been moved since, with the config's student.path.
    """
    if is_adapter(student):
        return  # its successors stand on its own base, which no config names
    for path in sorted(policies.glob(f"v*/{ADAPTER_CONFIG}")):
        content = json.loads(path.read_text())
        if content.get("base_model_name_or_path") != str(student):
            write_json(path, {**content, "base_model_name_or_path": str(student)})


def _holds(folder: Path, digest: str, base: Path | None, cache: WeightsCache | None) -> bool:
    try:
        stored = read_manifest(folder).get("weights_hash")
        return stored == digest == weights_hash(folder, base, cache)
    except VideoOPDError:
        return False
