"""The demo's config for a bench: a world and a run of its own in a folder that goes away."""

from __future__ import annotations

from pathlib import Path

from flows.shipped import shipped_files
from opd_core.types import VideoOPDError


def world_config(
    folder: Path, seed: int, train_videos: int | None = None, eval_videos: int | None = None
) -> str:
    """A config like the demo's, with a world (by default as large) and a run of their own."""
    from flows.demo import make_tiny_world

    source = shipped_files() / "configs" / "tiny.toml"
    make_tiny_world(folder / "world", seed, train_videos, eval_videos)
    text = source.read_text()
    for old, new in (
        ('"../runs/tiny"', f'"{folder / "run"}"'),
        ("\nseed = 0", f"\nseed = {seed}"),
        ('"../worlds/tiny', f'"{folder / "world"}'),
        ('"tiny/', f'"{source.resolve().parent / "tiny"}/'),
    ):
        if old not in text:
            raise VideoOPDError(f"{source} has no {old.strip()}, which the bench replaces")
        text = text.replace(old, new)
    path = folder / "bench.toml"
    path.write_text(text)
    return str(path)
