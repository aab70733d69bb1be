"""What the stages of a round take - seconds, tokens, memory - until its update keeps it in its row.

A stage may run in a process of its own: each leaves a line in the run's cache, which goes once the
round is committed. A stage that was killed leaves none.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from opd_core.model import peak_memory, token_count
from opd_core.types import StageUse

if TYPE_CHECKING:
    from flows.summaries import Done

_CACHE = ".cache"


@dataclass
class Measuring:
    """A stage that runs now, in this process."""

    run: Path
    stage: str
    version: int
    began: float
    tokens: int
    done: Done | None = None

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def use(self) -> StageUse:
        seconds = self.seconds
        peak, of = peak_memory.peak()
        return _use(self.stage, seconds, token_count.total() - self.tokens, peak, of)


_now: Measuring | None = None


@contextmanager
def measuring(run: Path, stage: str, version: int) -> Iterator[Measuring]:
    """Measure a stage of the round of policy `version`; kept where it is `done` and wrote rows."""
    global _now
    peak_memory.begin()
    _now = mine = Measuring(run, stage, version, time.perf_counter(), token_count.total())
    try:
        yield mine
        if mine.done is not None and mine.done.rows and stage != "update":
            _file(run).parent.mkdir(exist_ok=True)
            with _file(run).open("a") as file:
                # Begun on a line of its own, also where a kill or a full disk has cut the last one.
                file.write("\n" + json.dumps({"version": version, **asdict(mine.use())}) + "\n")
    finally:
        _now = None


@contextmanager
def waiting() -> Iterator[None]:
    """Wait for others: no time of the stage that runs now, if one does."""
    began = time.perf_counter()
    try:
        yield
    finally:
        if _now is not None:
            _now.began += time.perf_counter() - began


def of_round(run: Path, version: int) -> tuple[StageUse, ...]:
    """One a stage that has worked with policy `version`, the running one last: its executions
    together, with the largest memory of any."""
    uses: dict[str, StageUse] = {}
    measured = [use for number, use in _lines(run) if number == version]
    if _now is not None and (_now.run, _now.version) == (run, version):
        measured.append(_now.use())
    for use in measured:
        if (before := uses.pop(use.stage, None)) is not None:
            use = _use(
                use.stage,
                before.seconds + use.seconds,
                (before.tokens or 0) + (use.tokens or 0),
                max(before.peak_memory, use.peak_memory),
                use.memory_of,
            )
        uses[use.stage] = use
    return tuple(uses.values())


def forget(run: Path) -> None:
    """A round is committed: drop what its stages and those of earlier rounds took. Lines of later
    rounds are dropped, too: they are of policies that an update which was run again superseded."""
    _file(run).unlink(missing_ok=True)


def _use(stage: str, seconds: float, tokens: int, peak: int, of: str) -> StageUse:
    speed = tokens / seconds if tokens else None
    return StageUse(stage, seconds, tokens or None, speed, peak, of)


def _file(run: Path) -> Path:
    """In a folder that anybody may remove."""
    return run / _CACHE / "stages.jsonl"


def _lines(run: Path) -> list[tuple[int, StageUse]]:
    """The lines that are whole: any may have been cut by a kill."""
    file = _file(run)
    lines = file.read_text().splitlines() if file.exists() else []
    content = []
    for line in lines:
        with suppress(ValueError):
            content.append(json.loads(line))
    return [(line.pop("version"), StageUse(**line)) for line in content]
