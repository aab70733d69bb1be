"""What a round of many cards takes beside what they compute: decoding, loading, waiting, writing.

Each is hours of a round by a rate below. Some were measured (docs/numbers.md names the bench), some
are a data sheet's, and two are only taken, because they are of a place and not of this program.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from opd_core.plan.memory import BYTES, Setting, answers_of_teacher, weights_bytes
from opd_core.plan.parameters import parameters_of
from opd_core.plan.work import StageWork, disk, stored_video

DECODED = 390.0
"""Frames a second of one core, 1280x720 at 2.8 Mbit/s; measured (`bench decoding`)."""
FILMED = 30.0
"""Frames a second of a video file; taken. All are decoded, few are seen."""
APPENDED = 25_000.0
"""Answers a second with their scores, that the one process which writes appends; measured (`bench
store`)."""
LINK = 50e9
"""Bytes a second to and from a card between machines, 400 Gbit/s; a data sheet's."""
READ = 2e9
"""Bytes a second that the shared file system gives to all machines together; taken."""
CARDS = 8
"""Of a machine, which reads weights once for all of its cards."""
CORES = 4
"""That decode for a card: threads of the one decoder of its process (a test compares)."""
GATHERED = 2
"""Times that a pass forward and back brings the weights of all ranks together."""
FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class Beside:
    what: str
    hours: float
    """Of a round. Decoding and what ranks exchange go on while cards compute: what is longer
    counts. The others come on top."""
    counted: str
    """How much of what that is."""


def beside(
    setting: Setting, work: Mapping[str, StageWork], hours: Mapping[str, float]
) -> Iterator[Beside]:
    """Each of them, for a round of these stages on `setting.devices` cards, which take `hours`."""
    yield _decoding(setting, work)
    yield _loading(setting, work)
    if "update" in work:
        yield _exchange(setting, work["update"])
    yield _waiting(setting, work, hours)
    yield _writing(setting, work)


def _decoding(setting: Setting, work: Mapping[str, StageWork]) -> Beside:
    lengths = setting.lengths
    passes = {stage: w.videos for stage, w in work.items()}
    first = passes.pop("evaluate", 0.0) + max(passes.values(), default=0.0)
    seen = sum(w.videos for w in work.values())
    kept = min(1.0, disk(setting).frames / max(1.0, first * stored_video(setting)))
    decoded = first + (seen - first) * (1 - kept)
    seconds = lengths.mean.frames / setting.config.video.fps
    cores = setting.devices * CORES
    return Beside(
        "decoding",
        decoded * seconds * FILMED / DECODED / cores / 3600,
        f"{decoded:,.0f} videos of {seconds:,.0f} s by {cores:,} cores; the frame store holds "
        f"{100 * kept:.0f} % of a round's",
    )


def _loading(setting: Setting, work: Mapping[str, StageWork]) -> Beside:
    machines = math.ceil(setting.devices / CARDS)
    read = 0.0
    for stage in work:
        teachers = stage == "score" or answers_of_teacher(setting.config, stage)
        shape = setting.teacher if teachers else setting.student
        read += weights_bytes(setting.config, shape, teachers)
    return Beside(
        "loading weights",
        read * machines / READ / 3600,
        f"{read / 1e9:,.0f} GB by each of {machines} machines at {READ / 1e9:g} GB/s of all",
    )


def _exchange(setting: Setting, update: StageWork) -> Beside:
    steps, videos = _steps(setting, update)
    passes = steps * math.ceil(videos / setting.devices)
    numbers = parameters_of(setting.student).all
    bytes_ = numbers * (passes * GATHERED * BYTES[setting.config.student.dtype] + steps * FLOAT32)
    return Beside(
        "exchange of the update",
        bytes_ / LINK / 3600,
        f"{steps:,} steps, {passes:,} passes of a card",
    )


def _waiting(setting: Setting, work: Mapping[str, StageWork], hours: Mapping[str, float]) -> Beside:
    """Cards without work: at the end of a stage while one has its last video, which is the longest,
    and in an update at the end of each step."""
    lengths = setting.lengths
    longest = lengths.longest.tokens / lengths.mean.tokens
    waited = 0.0
    for stage, taken in hours.items():
        if stage == "update":
            _, videos = _steps(setting, work[stage])
            each = videos / setting.devices
            waited += taken * (math.ceil(each) / each - 1 + (longest - 1) / max(1.0, each))
        else:
            waited += taken * longest * setting.devices / max(1.0, work[stage].videos)
    return Beside(
        "waiting for the last", waited, f"at most; the longest video is {longest:.1f} of the mean"
    )


def _writing(setting: Setting, work: Mapping[str, StageWork]) -> Beside:
    config = setting.config
    each = {
        "validate": config.teacher.predictions,
        "rollout": config.rollout.rollouts_per_example,
        "evaluate": 1,
    }
    rows = sum(w.examples * each.get(stage, 0) for stage, w in work.items())
    return Beside("writing rows", rows / APPENDED / 3600, f"{rows:,.0f} answers by one process")


def _steps(setting: Setting, update: StageWork) -> tuple[int, float]:
    """Steps of an update, and the videos of one."""
    steps = math.ceil(update.examples / setting.config.update.examples_per_step)
    return steps, update.videos / steps
