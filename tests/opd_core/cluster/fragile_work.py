"""A stage's work whose workers can be made to die: its rows are the ids of its examples."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from opd_core.cluster.work import Compute, Feed, Piece
from opd_core.config.load import Config
from opd_core.types import Batch, EngineCrashError, GroundingExample, Policy, Span, VideoOPDError


@dataclass(frozen=True)
class Fragile:
    config: Config
    policy: Policy
    deaths: Path
    """A folder, with a file a worker that has died."""
    video: str = ""
    """Kills the worker that comes to it, `*` any,"""
    times: int = 99
    """so many times."""
    dies_opening: bool = False
    refuses: str = ""
    """A video of which it says that it cannot be."""
    asks_ahead: bool = False
    """As vLLM: it takes the next piece, or hears that there is none, before it answers the last."""

    stage = "rollout"

    @contextmanager
    def opened(self) -> Iterator[Compute[str]]:
        if self.dies_opening:
            self._die()

        def compute(feed: Feed) -> Iterator[Batch[str]]:
            held: Piece | None = None
            for piece in feed:
                if held is not None:
                    yield self._batch(held)
                    held = None
                if self.asks_ahead:
                    held = piece
                else:
                    yield self._batch(piece)
            if held is not None:
                yield self._batch(held)

        yield compute

    def _batch(self, piece: Piece) -> Batch[str]:
        videos = {e.video_path for e in piece.examples}
        if self.refuses in videos:
            raise EngineCrashError(f"{self.refuses} cannot be; take another")
        if self.video in (*videos, "*") and len(list(self.deaths.iterdir())) < self.times:
            self._die()
        return Batch(tuple(e.example_id for e in piece.examples), (), len(piece.needed))

    def _die(self) -> None:
        (self.deaths / str(os.getpid())).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def example(video: int, sentence: int = 0, seconds: float = 10.0) -> GroundingExample:
    name, span = f"{video}-{sentence}", Span(1.0, 2.0)
    return GroundingExample(name, f"{video}.mp4", seconds, "a ball", span, "nobody", "train")


def refuse(what: str) -> None:
    """What a worker refuses, in the words given."""
    raise VideoOPDError(what)
