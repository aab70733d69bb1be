"""The processes of `videoopd study`, each given one request after the other: a world to make with
its frames decoded, or a run to bring to its rounds.

Several runs share a process, because starting one (torch, Prefect) takes longer than a short round;
nothing decoded is carried from one to the next, so that each reads the frame store alike. A process
that dies fails the request it had, and another takes its place. When the study ends in any way, by
SIGKILL too, its processes end at once: what they were doing is continued by the next study, as
after any kill.

By pebble and not by Prefect's process task runner, which is a `concurrent.futures` pool: there one
process that dies fails every request, and all of them outlive a study that is killed.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from flows.prefect_page.sending import PAGE
from flows.stage.costs import COSTS_FILE, recording
from opd_core.types import VideoOPDError
from storage.files import write_whole

Key = TypeVar("Key")
ONE_THREAD = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip

NOT_ON_PREFECTS_PAGE = {PAGE: "0"}
"""Nobody reads hundreds of rounds there; the report is what a study says."""


@dataclass(frozen=True, slots=True)
class WorldRequest:
    """Make a world with a train, a tune and an eval split, and decode all of it. Training reads
    `train-without-tune.jsonl`, annotated as the world is; `tune.jsonl` and `eval.jsonl` hold the
    truth, as `train_truth.jsonl` does of the training videos where they are annotated otherwise."""

    folder: str
    seed: int
    train_videos: int
    tune_videos: int
    eval_videos: int
    annotations: str
    scene: str
    config: str
    overrides: list[str]
    """A config of a run in this world: which frames are kept, and where."""


@dataclass(frozen=True, slots=True)
class RunRequest:
    """Bring a run to `rounds` rounds."""

    config: str
    overrides: list[str]
    rounds: int


class Workers(Protocol):
    """Gives out all requests; `answered` is told each key with the error, or None, in this
    thread."""

    def __call__(
        self,
        requests: Mapping[Key, WorldRequest | RunRequest],
        answered: Callable[[Key, str | None], None],
    ) -> None: ...


@contextmanager
def started_workers(jobs: int, log: Path) -> Iterator[Workers]:
    """`jobs` processes for as long as this is open; what they print goes to the end of `log`."""
    from pebble import ProcessExpired, ProcessPool

    # Theirs from the start; this process computes nothing.
    os.environ.update(ONE_THREAD | NOT_ON_PREFECTS_PAGE)
    pool = ProcessPool(
        jobs, initializer=_begin, initargs=[log], context=multiprocessing.get_context("spawn")
    )

    def give_out(
        requests: Mapping[Key, WorldRequest | RunRequest],
        answered: Callable[[Key, str | None], None],
    ) -> None:
        keys: dict[Future[str | None], Key] = {
            pool.schedule(answer, [request]): key for key, request in requests.items()
        }
        for future in as_completed(keys):
            try:
                error = future.result()
            except ProcessExpired as expired:
                error = f"its process ended with code {expired.exitcode}; see {log}"
            except BrokenProcessPool:
                raise VideoOPDError(
                    f"the study's processes end while they start; see {log}, then run it again"
                ) from None
            answered(keys[future], error)

    try:
        yield give_out
    finally:
        pool.stop()
        pool.join()


def _begin(log: Path) -> None:
    """First thing in a process: it ends with the study, and the first run's first stage does not
    pay for imports."""
    study = multiprocessing.parent_process()
    assert study is not None

    def end_with_the_study() -> None:
        study.join()
        os._exit(0)

    threading.Thread(target=end_with_the_study, daemon=True).start()
    with log.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    from flows.round import videoopd  # noqa: F401


def answer(request: WorldRequest | RunRequest) -> str | None:
    """The error that a request ended with, or None."""
    try:
        _make_world(request) if isinstance(request, WorldRequest) else _run(request)
    except VideoOPDError as error:
        return str(error)
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return None


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
    from flows.stage.models import with_folders
    from flows.stage.prepare import decoding_once
    from opd_core.annotations.timelens import read_timelens
    from opd_core.config.load import load_config
    from opd_core.focus.select import by_video
    from opd_core.prompts.batches import ExampleEncoder, cut_at_videos
    from opd_core.types import GroundingExample

    folder = Path(request.folder)
    world = make_tiny_world(
        folder,
        request.seed,
        request.train_videos + request.tune_videos,
        request.eval_videos,
        request.annotations,
        request.scene,
    )
    lines, truth = (f.read_text().splitlines(keepends=True) for f in (world.train, world.truth))
    whole = folder / "train-without-tune.jsonl"
    if whole.exists():
        if (videos := len(whole.read_text().splitlines())) != request.train_videos:
            raise VideoOPDError(
                f"{whole} has {videos} videos, not the study's {request.train_videos}; remove "
                "the study's folder, or give its file another name"
            )
        return
    config = with_folders(load_config(request.config, request.overrides), str(request.config))
    (folder / "tune.jsonl").write_text("".join(truth[request.train_videos :]))
    with decoding_once(config):
        encoder = ExampleEncoder(config, config.student.path)
        for name in ("train", "eval"):
            items = read_timelens(folder / f"{name}.jsonl", name)
            examples = by_video([e for e in items if isinstance(e, GroundingExample)])
            for _ in encoder.encode_batches(list(cut_at_videos(examples, 256)), "study", None):
                pass
    # Last and whole or not at all: it says that the world is there.
    write_whole(whole, "".join(lines[: request.train_videos]))
