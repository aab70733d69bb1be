"""A process of `videoopd study`: makes worlds and runs runs, one request a line on standard input.

    {"world": {...}}            a world with its three splits, its frames decoded and kept
    {"run": {...}}              the flow `videoopd` with a config, its overrides and its rounds

Each is answered by a line on standard output. Several runs share a process, because starting one
(torch, Prefect) takes longer than a short round; nothing decoded is carried from one to the next,
so that each reads the frame store alike. When standard input ends, the process ends at once: what
it was doing is continued by the next study, as after any kill.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flows.stage.costs import COSTS_FILE, recording
from opd_core.types import VideoOPDError


@dataclass(frozen=True, slots=True)
class WorldRequest:
    """Make a world with a train, a tune and an eval split, and decode all of it."""

    folder: str
    seed: int
    train_videos: int
    tune_videos: int
    eval_videos: int
    config: str
    overrides: list[str]
    """A config of a run in this world: which frames are kept, and where."""


@dataclass(frozen=True, slots=True)
class RunRequest:
    """Bring a run to `rounds` rounds."""

    config: str
    overrides: list[str]
    rounds: int


def as_line(request: WorldRequest | RunRequest) -> str:
    kind = "world" if isinstance(request, WorldRequest) else "run"
    return json.dumps({kind: asdict(request)})


def main() -> None:
    """Serve until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the study, which then ends us
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no reply
    requests: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    _import_all()
    while True:
        print(json.dumps(_answer(json.loads(requests.get()))), file=replies, flush=True)


def _read(requests: queue.Queue[str]) -> None:
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)


def _import_all() -> None:
    """So that the first run's first stage does not pay for it."""
    from flows.round import videoopd  # noqa: F401


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        if "world" in request:
            _make_world(WorldRequest(**request["world"]))
        else:
            _run(RunRequest(**request["run"]))
        return {"error": None}
    except VideoOPDError as error:
        return {"error": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def _run(request: RunRequest) -> None:
    from flows.round import videoopd
    from flows.stage.prepare import opened
    from opd_core.prompts.batches import forget_decoded

    forget_decoded()
    with opened(request.config, request.overrides) as work:
        rounds = request.rounds - work.policy_of_round().version
        path = work.run.path
    if rounds >= 0:
        with recording(path / COSTS_FILE):
            videoopd(request.config, rounds=rounds, overrides=request.overrides)


def _make_world(request: WorldRequest) -> None:
    from flows.demo import make_tiny_world
    from flows.stage.prepare import decoding_once
    from opd_core.annotations.timelens import read_timelens
    from opd_core.config.load import load_config
    from opd_core.focus.select import by_video
    from opd_core.prompts.batches import ExampleEncoder, cut_at_videos
    from opd_core.types import GroundingExample

    folder = Path(request.folder)
    make_tiny_world(
        folder, request.seed, request.train_videos + request.tune_videos, request.eval_videos
    )
    lines = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    whole = folder / "train-without-tune.jsonl"
    if whole.exists():
        if len(found := whole.read_text().splitlines()) != request.train_videos:
            raise VideoOPDError(
                f"{whole} has {len(found)} videos, not the study's {request.train_videos}; remove "
                "the study's folder, or give its file another name"
            )
        return
    config = load_config(request.config, request.overrides)
    (folder / "tune.jsonl").write_text("".join(lines[request.train_videos :]))
    with decoding_once(config):
        encoder = ExampleEncoder(config, config.student.path)
        for name in ("train", "eval"):
            items = read_timelens(folder / f"{name}.jsonl", name)
            examples = by_video([e for e in items if isinstance(e, GroundingExample)])
            for _ in encoder.encode_batches(list(cut_at_videos(examples, 256)), "study", None):
                pass
    aside = whole.with_suffix(".part")
    aside.write_text("".join(lines[: request.train_videos]))
    aside.replace(whole)  # last: it says that the world is whole


if __name__ == "__main__":
    main()
