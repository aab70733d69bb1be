"""`videoopd bench kills`: 100 kill -9 at random moments of runs of three rounds, and what was lost.

The real command in a process of its own, on a small tiny world with the shipped models and short
rounds; their updates save every step and go on at the last. The same command goes on until three
rounds are finished; then every table is compared with those of a run that nobody disturbed, and
audited. New runs follow until there were enough kills.

A moment is a number of processor seconds that the command has used since it holds the run: the
clock would depend on what else the machine does, and before that is only Python's and Prefect's
start. Every eighth kill does fall into the start, and takes the command's own Prefect server with
it, as a machine that loses power would; the others share one server.
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

from flows.bench.interleaved import Row
from opd_core.types import VideoOPDError
from storage import locks
from storage.asking.contents import Rows, contents, differences
from storage.runs.run import Run
from storage.stages import STAGES
from storage.tables.schemas import TABLES

KILLS, ROUNDS, SEED = 100, 3, 0
TRAIN_VIDEOS, EVAL_VIDEOS = 30, 6
FROM_THE_START = 8
"""One command in so many starts a Prefect server of its own and is killed while it starts."""
POLL_SECONDS = 0.01
ATTEMPTS = 300
"""Of one run, which takes some tens of kills; one that needs more makes no progress."""
SHORT_ROUNDS = {
    "rollout.examples_per_round": 24,
    "rollout.prompts_per_batch": 8,
    "focus.top_k": 16,
    "focus.min_teacher_iou": 0,
    "update.epochs": 1,
    "update.examples_per_step": 2,
    "update.save_minutes": 0,
    "evaluate.max_examples": 8,
    "evaluate.prompts_per_batch": 4,
    "storage.flush_seconds": 0.2,
}
IN_ORDER = [n for stage in STAGES for n, table in TABLES.items() if table.writer == stage]
"""Tables, as a round writes them."""


@dataclass
class _Bench:
    """What is measured, and with what."""

    folder: Path
    config: str
    api: str
    """Address of the Prefect server that most commands use."""
    rounds: int
    moments: random.Random
    wanted: int
    kills: int = 0
    hit: Counter[str] = field(default_factory=Counter)
    """stage -> kills in it."""
    gone_on: int = 0
    """Kills after which an update had a saved step to go on from."""
    problems: list[str] = field(default_factory=list)
    expected: dict[str, Rows] = field(default_factory=dict)
    heights: dict[tuple[str, int], int] = field(default_factory=dict)
    """(table, round) -> rows of the undisturbed run when that round was finished."""
    starting: float = 0.0
    """Processor seconds of the undisturbed command until it held the run."""
    a_round: float = 0.0
    """Processor seconds of one of its rounds."""


def kills_rows(kills: int = KILLS, rounds: int = ROUNDS, seed: int = SEED) -> Iterator[Row]:
    """The one row of this bench; each kill is printed as it happens."""
    from flows.bench.tiny_config import world_config

    began = time.perf_counter()
    with tempfile.TemporaryDirectory(
        prefix="videoopd-kills-", ignore_cleanup_errors=True
    ) as scratch:
        folder = Path(scratch)
        config = world_config(folder, 0, TRAIN_VIDEOS, EVAL_VIDEOS)
        bench = _Bench(
            folder, config, _server(folder / "server"), rounds, random.Random(seed), kills
        )
        try:
            _undisturbed(bench)
            print(f"  seed {seed}; {bench.starting:.1f} s of processor time to start, "
                  f"{bench.a_round:.1f} s a round", flush=True)  # fmt: skip
            runs = 0
            with _interrupt_means_enough(bench):
                while bench.kills < bench.wanted and not bench.problems:
                    runs += 1
                    bench.problems += _killed_run(bench, runs)
        finally:
            _end_all(folder)
        details = {
            "seed": seed, "runs": runs, "in stage": dict(bench.hit.most_common()),
            "in an update with a saved step": bench.gone_on, "problems": bench.problems,
            "minutes": (time.perf_counter() - began) / 60,
        }  # fmt: skip
        yield Row(
            f"kill -9 at random moments of runs of {rounds} rounds", bench.kills, " kills",
            f"{kills}, nothing lost, nothing twice, every round finished",
            bench.kills >= kills and not bench.problems, details,
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
    child = _start(bench, path, bench.rounds, bench.api)
    while not _holds(child, path) and child.poll() is None:
        bench.starting = _used(child)
        time.sleep(POLL_SECONDS)
    last = bench.starting
    while child.poll() is None:
        last = max(last, _used(child))
        time.sleep(POLL_SECONDS)
    if child.returncode:
        raise VideoOPDError(
            f"the run that nobody killed ended with {child.returncode}: {_last_line(path)}"
        )
    bench.a_round = (last - bench.starting) / bench.rounds
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
        rounds = bench.rounds - len(_finished(path))
        if not rounds:
            break
        while_starting = bench.moments.random() < 1 / FROM_THE_START
        child = _start(bench, path, rounds, None if while_starting else bench.api)
        in_stage = None
        if bench.kills < bench.wanted:
            in_stage = _kill(bench, child, path, while_starting)
        if in_stage is not None:
            bench.kills += 1
            bench.hit[in_stage] += 1
            bench.gone_on += in_stage == "update" and _has_saved_step(path)
            print(f"  kill {bench.kills}: run {number}, {in_stage}", flush=True)
        elif code := child.wait():
            return [f"run {number} ended with {code} after {bench.kills} kills: {_last_line(path)}"]
        _end_all(bench.folder)
    else:
        return [f"run {number} makes no progress in {ATTEMPTS} attempts"]
    return [f"run {number}: {problem}" for problem in _problems(bench, path)]


def _kill(
    bench: _Bench, child: subprocess.Popen[bytes], path: Path, while_starting: bool
) -> str | None:
    """The stage that was hit; None where the command had ended before its moment."""
    moment = bench.moments.uniform(0.0, bench.starting if while_starting else bench.a_round)
    while not while_starting and not _holds(child, path) and child.poll() is None:
        time.sleep(POLL_SECONDS)
    since = 0.0 if while_starting else _used(child)
    while child.poll() is None and _used(child) - since < moment:
        time.sleep(POLL_SECONDS)
    if child.poll() is not None:
        return None
    begun = _holds(child, path)
    child.kill()
    child.wait()
    _end_all(bench.folder)
    return _stage(bench, path) if begun else "start"


def _used(child: subprocess.Popen[bytes]) -> float:
    """Processor seconds of the command, without its children; 0 once it has ended."""
    try:
        times = psutil.Process(child.pid).cpu_times()
        return float(times.user + times.system)
    except psutil.NoSuchProcess:
        return 0.0


def _server(home: Path) -> str:
    """Address of a Prefect server with a home of its own, which ends with this process."""
    from flows.server.local import connect

    before = {name: value for name, value in os.environ.items() if name.startswith("PREFECT_")}
    for name in before:
        del os.environ[name]
    os.environ["PREFECT_HOME"] = str(home)
    try:
        connect()()
        return os.environ["PREFECT_API_URL"]
    finally:
        for name in [name for name in os.environ if name.startswith("PREFECT_")]:
            del os.environ[name]
        os.environ.update(before)


def _start(bench: _Bench, path: Path, rounds: int, api: str | None) -> subprocess.Popen[bytes]:
    """`videoopd run`, as a person would start it, with a Prefect home that is the bench's."""
    settings = SHORT_ROUNDS | {"run.path": path}
    overrides = [text for item in settings.items() for text in ("--set", "{}={}".format(*item))]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    if api is not None:
        environment["PREFECT_API_URL"] = api
    with path.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "run", bench.config, "--rounds", str(rounds),
             *overrides],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            cwd=Path(__file__).resolve().parents[2],
            env=environment
            | {"PREFECT_HOME": str(_home(bench.folder)), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def _home(folder: Path) -> Path:
    return folder / "prefect"


def _holds(child: subprocess.Popen[bytes], path: Path) -> bool:
    """Whether the run's lock names this process. Trying the lock instead might take it away."""
    return f"process {child.pid} " in locks.holder(path / ".locks" / "round.lock")


def _end_all(folder: Path) -> None:
    """SIGKILL to all that has this bench's Prefect home: the command, its server, its decoders."""
    while processes := _alive(str(_home(folder))):
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(processes, timeout=10)


def _alive(home: str) -> list[psutil.Process]:
    alive = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("PREFECT_HOME") == home:
                alive.append(process)
        except (psutil.Error, OSError):
            continue  # ended meanwhile, or another user's
    return alive


def _finished(path: Path) -> list[int]:
    return Run.open(path).finished_rounds() if (path / "run.json").exists() else []


def _has_saved_step(path: Path) -> bool:
    return (path / "run.json").exists() and Run.open(path).saved_steps().newest() is not None


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
    from flows.audit.walk import Depth, audit

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
