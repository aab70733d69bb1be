"""What the trainer keeps: whole or not at all, and of the newest policy only."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from opd_core.types import Policy
from storage.runs import trainer_folders


def published(run: Path, version: int) -> Policy:
    staging = trainer_folders.staging_folder(run, version)
    staging.mkdir(parents=True)
    (staging / "optimizer.pt").write_bytes(b"moments")
    (staging / "weights.safetensors").write_bytes(b"float32 weights")
    trainer_folders.publish(staging, run, f"v{version}", f"hash {version}")
    return Policy(version, run / "policies" / f"v{version}", f"hash {version}")


def test_half_of_what_is_removed_is_never_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moments without their float32 weights would go on with what the policy's folder rounds."""
    older, newest = published(tmp_path, 1), published(tmp_path, 2)

    def killed(folder: Path) -> None:
        (folder / "weights.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            trainer_folders.keep_only(tmp_path, newest)
    assert trainer_folders.of_policy(tmp_path, older) is None
    assert trainer_folders.of_policy(tmp_path, newest) == tmp_path / "trainer" / "v2"
    trainer_folders.staging_folder(tmp_path, 3)
    assert [p.name for p in (tmp_path / "trainer").iterdir()] == ["v2"]
