"""`videoopd bench kills`: 100 kill -9 at random moments of runs of three rounds, and what was lost.

The real command in a process of its own, on a small tiny world with the shipped models and short
rounds; its Prefect server and its decoders are killed with it, as a machine that loses power would.
The same command goes on until three rounds are finished; then every table is compared with those of
a run that nobody disturbed, and audited. New runs follow until there were enough kills.

A moment is counted from when the command holds the run, because half of its time is Python's and
Prefect's start, where there is little to lose; every eighth is counted from the start instead.
Ctrl-C ends the killing: the run at hand is finished and compared, and the kills so far are the row.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from opd_core.bench.interleaved import Row
from opd_core.types import VideoOPDError
from storage import locks
from storage.contents import Rows, contents, differences
from storage.run import Run
from storage.schemas import TABLES

KILLS, ROUNDS, SEED = 100, 3, 0
TRAIN_VIDEOS, EVAL_VIDEOS = 30, 6
FROM_THE_START = 8
"""One kill in so many is counted from the start of the command."""
ATTEMPTS = 60
"""Of one run; one that needs more makes no progress."""
SHORT_ROUNDS = {
    "rollout.examples_per_round": 24,
    "rollout.prompts_per_batch": 8,
    "focus.top_k": 16,
    "focus.min_teacher_iou": 0,
    "update.epochs": 1,
    "update.examples_per_step": 8,
    "evaluate.max_examples": 8,
    "evaluate.prompts_per_batch": 4,
    "storage.flush_seconds": 0.2,
}
IN_ORDER = (
    "draws", "teacher_predictions", "rollouts", "teacher_scores", "selections", "updates",
    "evaluations",
)  # fmt: skip


@dataclass
class _Bench:
    """What is measured, and with what."""

    folder: Path
    config: str
    rounds: int
    moments: random.Random
    wanted: int
    kills: int = 0
    hit: Counter[str] = field(default_factory=Counter)
    """stage -> kills in it."""
    problems: list[str] = field(default_factory=list)
    expected: dict[str, Rows] = field(default_factory=dict)
    heights: dict[tuple[str, int], int] = field(default_factory=dict)
    """(table, round) -> rows of the undisturbed run when that round was finished."""
    starting: float = 0.0
    """Seconds from the start of the undisturbed command until it held the run."""
    a_round: float = 0.0
    """Seconds of one of its rounds, the command's end included."""


def kills_rows(kills: int = KILLS, rounds: int = ROUNDS, seed: int = SEED) -> Iterator[Row]:
    """The one row of this bench; each kill is printed as it happens."""
    from flows.bench import world_config

    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="videoopd-kills-") as scratch:
        folder = Path(scratch)
        config = world_config(folder, 0, TRAIN_VIDEOS, EVAL_VIDEOS)
        bench = _Bench(folder, config, rounds, random.Random(seed), kills)
        try:
            _undisturbed(bench)
            print(f"  seed {seed}; {bench.starting:.1f} s to start, {bench.a_round:.1f} s a round",
                  flush=True)  # fmt: skip
            runs = 0
            with _interrupt_means_enough(bench):
                while bench.kills < bench.wanted and not bench.problems:
                    runs += 1
                    bench.problems += _killed_run(bench, runs)
        finally:
            _end_all(folder)
        yield Row(
            f"kill -9 at random moments of {runs} runs of {rounds} rounds", bench.kills, " kills",
            "nothing lost, nothing twice, every round finished", not bench.problems,
            {"seed": seed, "in stage": dict(bench.hit.most_common()), "problems": bench.problems,
             "minutes": (time.perf_counter() - began) / 60},
        )  # fmt: skip


@contextmanager
def _interrupt_means_enough(bench: _Bench) -> Iterator[None]:
    def enough(*_: object) -> None:
        bench.wanted = bench.kills

    before = signal.signal(signal.SIGINT, enough)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _undisturbed(bench: _Bench) -> None:
    """One run that nobody kills: what the others must be equal to, and how long it takes."""
    path = bench.folder / "undisturbed"
    child, began = _start(bench, path, bench.rounds), time.monotonic()
    _wait_for_lock(child, path)
    bench.starting = time.monotonic() - began
    if code := child.wait():
        raise VideoOPDError(f"the run that nobody killed ended with {code}: {_last_line(path)}")
    bench.a_round = (time.monotonic() - began - bench.starting) / bench.rounds
    _end_all(bench.folder)
    _remember(bench, Run.open(path))


def _remember(bench: _Bench, run: Run) -> None:
    bench.expected = contents(run)
    for number in range(1, bench.rounds + 1):
        for name in TABLES:
            bench.heights[name, number] = run.tables.scan(name, f"round-{number}").collect().height


def _killed_run(bench: _Bench, number: int) -> list[str]:
    """Kills one run again and again until it is finished; what is wrong with it then."""
    path = bench.folder / f"run-{number}"
    for _ in range(ATTEMPTS):
        left = bench.rounds - len(_finished(path))
        if not left:
            break
        child = _start(bench, path, left)
        in_stage = _kill(bench, child, path) if bench.kills < bench.wanted else None
        if in_stage is not None:
            bench.kills += 1
            bench.hit[in_stage] += 1
            print(f"  kill {bench.kills}: run {number}, {in_stage}", flush=True)
        elif code := child.wait():
            return [f"run {number} ended with {code} after {bench.kills} kills: {_last_line(path)}"]
        _end_all(bench.folder)
    else:
        return [f"run {number} makes no progress in {ATTEMPTS} attempts"]
    return [f"run {number}: {problem}" for problem in _problems(bench, path)]


def _kill(bench: _Bench, child: subprocess.Popen[bytes], path: Path) -> str | None:
    """The stage that was hit; None where the command had ended before its moment."""
    from_start = bench.moments.random() < 1 / FROM_THE_START
    delay = bench.moments.uniform(0.0, bench.starting if from_start else bench.a_round)
    if not from_start:
        _wait_for_lock(child, path)
    try:
        child.wait(timeout=delay)
        return None
    except subprocess.TimeoutExpired:
        pass
    begun = _holds(child, path)
    child.kill()
    child.wait()
    _end_all(bench.folder)
    return _stage(bench, path) if begun else "start"


def _start(bench: _Bench, path: Path, rounds: int) -> subprocess.Popen[bytes]:
    """`videoopd run`, as a person would start it, with a Prefect home of its own."""
    settings = SHORT_ROUNDS | {"run.path": path}
    overrides = [text for item in settings.items() for text in ("--set", "{}={}".format(*item))]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    with path.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "run", bench.config, "--rounds", str(rounds),
             *overrides],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            cwd=Path(__file__).resolve().parents[1],
            env={**kept, "PREFECT_HOME": str(_home(bench.folder)), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def _home(folder: Path) -> Path:
    return folder / "prefect"


def _wait_for_lock(child: subprocess.Popen[bytes], path: Path) -> None:
    while child.poll() is None and not _holds(child, path):
        time.sleep(0.01)


def _holds(child: subprocess.Popen[bytes], path: Path) -> bool:
    """Whether the run's lock names this process. Trying the lock instead might take it away."""
    return f"process {child.pid} " in locks.holder(path / ".locks" / "round.lock")


def _end_all(folder: Path) -> None:
    """SIGKILL to all that has this bench's Prefect home: the command, its server, its decoders."""
    while found := _alive(str(_home(folder))):
        for process in found:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(found, timeout=10)


def _alive(home: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PREFECT_HOME") == home:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # ended meanwhile, or another user's
    return found


def _finished(path: Path) -> list[int]:
    return Run.open(path).finished_rounds() if (path / "run.json").exists() else []


def _stage(bench: _Bench, path: Path) -> str:
    """The first stage whose rows are not those of the undisturbed run yet."""
    run = Run.open(path)
    heights = {name: run.scan(name).collect().height for name in TABLES}
    if heights["examples"] < bench.heights["examples", 1]:
        return "import"
    base = sum(row["policy_version"] == 0 for row in bench.expected["evaluations"])
    if heights["evaluations"] < base:
        return "evaluate"
    for number in range(len(run.finished_rounds()) + 1, bench.rounds + 1):
        for name in IN_ORDER:
            if heights[name] < bench.heights[name, number]:
                return str(TABLES[name].writer)
        if number not in run.finished_rounds():
            return "finish"
    return "after the last round"


def _problems(bench: _Bench, path: Path) -> list[str]:
    from flows.audit import Depth, audit

    run = Run.open(path)
    problems = differences(contents(run), bench.expected)
    for number in range(1, bench.rounds + 1):
        for name in TABLES:
            height = run.tables.scan(name, f"round-{number}").collect().height
            if height != (expected := bench.heights[name, number]):
                problems.append(f"{name} at round-{number} has {height} rows, not {expected}")
    verdicts: list[Any] = list(audit(run, Depth(seed=0)))
    return problems + [f"audit, {v.link}: {v.broken}" for v in verdicts if v.broken]


def _last_line(path: Path) -> str:
    lines = path.with_suffix(".log").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
