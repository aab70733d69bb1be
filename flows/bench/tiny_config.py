"""A config of the tiny world for a bench: world and run of its own in a folder that goes away."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flows.demo import ANNOTATIONS
from flows.shipped import shipped_files
from opd_core.types import VideoOPDError


@dataclass(frozen=True, slots=True)
class Shipped:
    """A shipped config, as far as a bench puts something else in its place."""

    name: str
    world: str
    """Folder of its world, as the file has it."""
    annotations: str


DEMO = Shipped("tiny.toml", "../worlds/tiny-loose", ANNOTATIONS)
BASE = Shipped("study_base.toml", "../worlds/tiny", "clean")
"""What has been measured from the beginning; the demo may change."""


def world_config(
    folder: Path,
    seed: int,
    train_videos: int | None = None,
    eval_videos: int | None = None,
    like: Shipped = BASE,
) -> str:
    """A config like a shipped one, with a world (by default as large as the demo's) and a run of
    their own."""
    from flows.demo import make_tiny_world

    source = shipped_files() / "configs" / like.name
    make_tiny_world(folder / "world", seed, train_videos, eval_videos, like.annotations)
    text = source.read_text()
    for old, new in (
        ('"../runs/tiny"', f'"{folder / "run"}"'),
        ("\nseed = 0", f"\nseed = {seed}"),
        (f'"{like.world}/', f'"{folder / "world"}/'),
        ('"tiny/', f'"{source.resolve().parent / "tiny"}/'),
    ):
        if old not in text:
            raise VideoOPDError(f"{source} has no {old.strip()}, which the bench replaces")
        text = text.replace(old, new)
    path = folder / "bench.toml"
    path.write_text(text)
    return str(path)
