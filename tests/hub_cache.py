"""A cache of the hub, filled by hand as huggingface_hub lays it out."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

REPO = "Tiny/Student"
FIRST, SECOND = "1" * 40, "2" * 40


def fill(
    cache: Path, checkpoint: Path, repo: str = REPO, commit: str = FIRST,
    ref: str | None = "main", without: Collection[str] = (),
) -> Path:  # fmt: skip
    """Put a checkpoint's files into `cache` as `repo` at `commit`; returns its snapshot."""
    place = cache / f"models--{repo.replace('/', '--')}"
    snapshot = place / "snapshots" / commit
    for folder in (snapshot, place / "blobs", place / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    for file in checkpoint.iterdir():
        if file.name in without:
            continue
        content = file.read_bytes()
        blob = place / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    if ref is not None:
        (place / "refs" / ref).write_text(commit)
    return snapshot
