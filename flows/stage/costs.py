"""What each stage of a run costs: wall-clock, CPU seconds, tokens through the models, and for how
long its engine worked and waited.

    with recording(run.path / COSTS_FILE):
        videoopd(config, rounds=8)

A line a stage execution, and one for what lies between two of them (Prefect, the flow itself). CPU
seconds are those of this process and of its children, ended and alive: on a shared machine with one
thread they are what wall-clock would be on one core of one's own. A stage that is killed leaves
what it had spent up to its last second, which the next recording takes over: the cost of a round
that was resumed is the sum of its lines. Without `recording` nothing is measured.
"""

from __future__ import annotations

import functools
import json
import resource
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from opd_core.engines import idle_time
from opd_core.engines.idle_time import EngineTime
from opd_core.model import token_count

if TYPE_CHECKING:
    from flows.stage.prepare import Work
    from flows.summaries import StageSummary
    from opd_core.types import Policy

COSTS_FILE = "costs.jsonl"
"""In the folder of the run."""
BETWEEN = "between"
TICK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class StageCost:
    """One execution of a stage, whole or up to where it was killed."""

    policy_version: int
    """That the stage was given: a round makes the next one, `evaluate` answers with this one."""
    stage: str
    """Or `between`: from the end of the last stage to the start of the next, which `policy_version`
    is of."""
    seconds: float
    cpu_seconds: float
    tokens: int
    attempt: str
    """Id of the process's recording: a round with several was resumed."""
    killed: bool = False
    engine_seconds: float | None = None
    """How long its engine was at work; None: it had none, as in rows of older programs."""
    engine_idle_seconds: float | None = None
    """How long it had nothing to answer, because prompts were not ready
    (`opd_core/engines/idle_time.py`)."""


def read_costs(path: Path) -> list[StageCost]:
    """The lines of a file of costs, in the order in which they were written; none where it is not
    there. A last line that was cut by a kill is left out."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [StageCost(**json.loads(line)) for line in lines if line.endswith("\n")]


def measured(function: Callable[..., StageSummary]) -> Callable[..., StageSummary]:
    """Make a stage tell the recording, if there is one, what it cost."""

    @functools.wraps(function)
    def stage(work: Work, policy: Policy, *args: Any, **kwargs: Any) -> StageSummary:
        if _recorder is None:
            return function(work, policy, *args, **kwargs)
        with _recorder.stage(function.__name__, policy.version):
            return function(work, policy, *args, **kwargs)

    return stage


@contextmanager
def recording(path: Path) -> Iterator[None]:
    """Append the costs of this process's stages to `path` meanwhile."""
    global _recorder
    before, _recorder = _recorder, _Recorder(path)
    try:
        yield
    finally:
        _recorder = before


class _Recorder:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._open = path.with_name(f".{path.name}.open")
        """The stage that runs now, as it was a second ago at most."""
        self._attempt = uuid.uuid4().hex[:12]
        self._ended: _Reading | None = None
        if self._path.exists() and (text := path.read_text()) and not text.endswith("\n"):
            path.write_text(text[: text.rfind("\n") + 1])
        if self._open.exists():
            unfinished = StageCost(**json.loads(self._open.read_text()))
            # Killed between the two writes below, it is in the file already.
            written = [replace(line, killed=True) for line in read_costs(path)[-1:]]
            if not written or not _same_stage(written[0], unfinished):
                self._append(unfinished)
            self._open.unlink()

    @contextmanager
    def stage(self, name: str, version: int) -> Iterator[None]:
        began = _Reading.now()
        if self._ended is not None:
            self._append(self._cost(BETWEEN, version, self._ended, began))
        over = threading.Event()

        def note() -> None:
            while not over.wait(TICK_SECONDS):
                self._note(replace(self._cost(name, version, began, _Reading.now()), killed=True))

        ticking = threading.Thread(target=note, daemon=True, name="stage cost")
        ticking.start()
        try:
            yield
        finally:
            over.set()
            ticking.join()
            self._ended = _Reading.now()
            if self._path.parent.is_dir():
                self._append(self._cost(name, version, began, self._ended))
                self._open.unlink(missing_ok=True)

    def _cost(self, stage: str, version: int, began: _Reading, ended: _Reading) -> StageCost:
        working = ended.engine.working - began.engine.working
        idle = ended.engine.idle - began.engine.idle
        return StageCost(
            policy_version=version,
            stage=stage,
            seconds=ended.seconds - began.seconds,
            cpu_seconds=ended.cpu_seconds - began.cpu_seconds,
            tokens=ended.tokens - began.tokens,
            attempt=self._attempt,
            engine_seconds=working or None,
            engine_idle_seconds=idle if working else None,
        )

    def _append(self, cost: StageCost) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(cost)) + "\n")

    def _note(self, cost: StageCost) -> None:
        aside = self._open.with_name(self._open.name + ".part")
        aside.write_text(json.dumps(asdict(cost)))
        aside.replace(self._open)


_recorder: _Recorder | None = None


def _same_stage(a: StageCost, b: StageCost) -> bool:
    return (a.attempt, a.stage, a.policy_version) == (b.attempt, b.stage, b.policy_version)


@dataclass(frozen=True, slots=True)
class _Reading:
    """The clocks of this process at a moment."""

    seconds: float
    cpu_seconds: float
    tokens: int
    engine: EngineTime

    @classmethod
    def now(cls) -> _Reading:
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = time.process_time() + ended.ru_utime + ended.ru_stime
        for child in psutil.Process().children(recursive=True):
            try:
                cpu += sum(child.cpu_times()[:4])  # its own, and of those it has waited for
            except psutil.Error:
                continue  # ended just now, and then it is in `ended` or was never waited for
        return cls(time.perf_counter(), cpu, token_count.total(), idle_time.total())
