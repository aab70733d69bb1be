"""`videoopd bench idle`: how soon a command says that there is nothing to do, or that it may not.

The real command in a process of its own, from its start to its end, after a round of the tiny
world: each stage of that round once more, and what is told while another process holds the run.
Medians; the worst of them is the number.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from flows.bench.interleaved import Row, at_most
from opd_core.config.load import load_config
from opd_core.types import VideoOPDError
from storage.runs.run import Run
from storage.stages import STAGES

REPETITIONS = 5
SECONDS = 3.0
SHORT = (
    "rollout.examples_per_round=32", "focus.top_k=16", "focus.min_teacher_iou=0",
    "update.epochs=1", "evaluate.max_examples=16",
)  # fmt: skip


def idle_rows(repetitions: int = REPETITIONS) -> Iterator[Row]:
    """Seconds of a stage with nothing to do, and of being refused on a busy run."""
    from flows.bench.tiny_config import world_config

    with tempfile.TemporaryDirectory() as folder:
        config = world_config(Path(folder), seed=0, train_videos=24, eval_videos=8)
        _seconds(["run", config], 0)
        stages = [["stage", name, config, "--round", "1"] for name in STAGES]
        yield _row("a stage with nothing to do", stages, 0, repetitions)
        busy = [["run", config], ["stage", "score", config], ["evaluate", config]]
        with Run.open(load_config(config).run.path).exclusive("round"):
            yield _row("a second process on a busy run is refused", busy, 2, repetitions)


def _row(name: str, commands: Sequence[Sequence[str]], code: int, repetitions: int) -> Row:
    wall: dict[str, float] = {}
    used: dict[str, float] = {}
    for command in commands:
        shown = " ".join(command[:2] if command[0] == "stage" else command[:1])
        turns = [_seconds(command, code) for _ in range(repetitions)]
        wall[shown] = statistics.median(seconds for seconds, _ in turns)
        used[shown] = statistics.median(cpu for _, cpu in turns)
    # Beside other work the clock says little of a process this short; its CPU seconds are told too.
    return at_most(
        name, max(wall.values()), SECONDS, unit=" s", median_seconds=wall, cpu_seconds=used
    )


def _seconds(command: Sequence[str], code: int) -> tuple[float, float]:
    """Wall-clock and CPU seconds of `videoopd ...`, which has to end with `code`."""
    overrides = [] if command[0] == "evaluate" else [f"--set={value}" for value in SHORT]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    before, began = _cpu_of_children(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "flows.cli", *command, *overrides],
        capture_output=True,
        text=True,
        env=environment,
    )
    seconds = time.perf_counter() - began
    if done.returncode != code:
        raise VideoOPDError(
            f"`videoopd {' '.join(command)}` ended with code {done.returncode} instead of {code}: "
            f"{done.stderr.strip().splitlines()[-1:]}; run it by hand"
        )
    return seconds, _cpu_of_children() - before


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
