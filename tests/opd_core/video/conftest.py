"""What the tests of reading videos share."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_core.video.clip import VideoClip
from opd_core.video.reader import VideoReader


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are decoded from now on, by any reader."""
    names: list[str] = []
    original = VideoReader._decode

    def counted(self: VideoReader, path: Path) -> VideoClip:
        names.append(path.name)
        return original(self, path)

    monkeypatch.setattr(VideoReader, "_decode", counted)
    return names
