"""What a run holds, as one record: `videoopd status --json` is all of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.console.report import ABSENT, accuracy, size_text
from flows.numbers.round_state import RoundState, count, last_config, round_state
from flows.stage.left_out import SameReason, left_out
from flows.stage.typed_config import config_words
from opd_core.config.sections import FRAMES_FOLDER
from opd_core.hub.name import cached_model
from storage.frames.store import usage
from storage.stages import round_number
from storage.tables import place
from storage.tables.schemas import TABLES
from storage.tables.takes import take_of

if TYPE_CHECKING:
    from storage.runs.run import Run


@dataclass(frozen=True, slots=True)
class TableState:
    """A table, and what it takes on disk."""

    name: str
    rows: int
    bytes: int
    about: str


@dataclass(frozen=True, slots=True)
class StaleStage:
    """A stage that a rerun has made stale, and the command that runs it again."""

    stage: str
    round: int
    why: str
    command: str


@dataclass(frozen=True, slots=True)
class TakeState:
    """A stage of a round that was run again."""

    stage: str
    round: int
    take: int
    why: str
    superseded: int
    """Rows,"""
    written: int
    """rows since."""
    name: str


@dataclass(frozen=True, slots=True)
class PolicyState:
    """A policy: how it does, and what made it."""

    policy_version: int
    metrics: dict[str, float | None]
    """By the names of `opd_core.spans.metrics`; empty while it is not evaluated."""
    rollouts: int | None
    """Trained on; None for the base."""
    objective: str | None
    tags: tuple[str, ...]
    let_go: str | None
    """When and why its weights were let go; None: they are there."""


@dataclass(frozen=True, slots=True)
class DataState:
    """What the annotation files hold, as last read."""

    train: int
    eval: int
    """Examples."""
    gone: int
    """Examples that are no longer annotated; they are kept as evidence."""

    def line(self) -> str:
        text = f"{self.train:,} train and {self.eval:,} eval examples"
        if self.gone:
            text += f"; {self.gone:,} that are no longer annotated are kept as evidence"
        return text


@dataclass(frozen=True, slots=True)
class Status:
    """All that `videoopd status` says."""

    run: str
    run_id: str
    created_at: str
    bytes: int
    as_of_round: int | None
    """None: as it is now."""
    round: int
    """The one to work on."""
    missing: str
    student: str
    """Its name on the hub at a commit, or its folder;"""
    teacher: str
    """both of the config that the run was last continued with."""
    state: RoundState
    data: DataState
    frames: str
    config: str
    """As one types it; CONFIG where the run does not say."""
    goes_on: str | None
    """The command; None of a past round."""
    stale: tuple[StaleStage, ...]
    stale_rounds: tuple[int, ...]
    """Rounds that stand on an update that has to be run again first."""
    takes: tuple[TakeState, ...]
    policies: tuple[PolicyState, ...]
    tables: tuple[TableState, ...]
    left_out: tuple[SameReason, ...]


def status_of(run: Run, config: str | None = None) -> Status:
    """Read the state of a run, as it is or as of the round it was opened at.

    `config` is the file that the run was found by.
    """
    state = round_state(run)
    hint = config or config_words(run)
    first = run.takes().in_the_way("draw", state.policy_version)
    tables = tuple(_tables(run))
    in_store = place.store_of(run.tables.folder) is not None
    go_on = first.command(hint) if first else f"videoopd run {hint}"
    stale = run.takes().stale()
    current = state.policy_version
    later = min((s.policy_version for s in stale if s.stage == "update"), default=current)
    return Status(
        run=str(run.path),
        run_id=run.run_id,
        created_at=run.created_at,
        bytes=_size(run.path) + (sum(table.bytes for table in tables) if in_store else 0),
        as_of_round=run.round,
        round=current + 1,
        missing=state.missing(),
        student=_model(last_config(run).get("student", {})),
        teacher=_teachers(run),
        state=state,
        data=_data(run),
        frames=_frames(run),
        config=hint,
        goes_on=go_on if run.round is None else None,
        stale=tuple(StaleStage(s.stage, s.round, s.reason(), s.command(hint)) for s in stale),
        stale_rounds=tuple(range(later + 2, current + 2)),
        takes=tuple(_takes(run)),
        policies=tuple(_policies(run)),
        tables=tables,
        left_out=tuple(left_out(run)),
    )


def _data(run: Run) -> DataState:
    counts = dict(run.present().group_by("split").len().collect().iter_rows())
    gone = count(run.examples()) - sum(counts.values())
    return DataState(counts.get("train", 0), counts.get("eval", 0), gone)


def _model(section: Mapping[str, Any]) -> str:
    path = Path(section.get("path", ABSENT))
    return str(cached_model(path) or path)


def _teachers(run: Run) -> str:
    config = last_config(run)
    several = (f"{one['name']} ({_model(one)})" for one in config.get("teachers", ()))
    return ", ".join(several) or _model(config.get("teacher", {}))


def _takes(run: Run) -> Iterator[TakeState]:
    rows = run.rows_by_take()
    for r in run.takes().reruns:
        round = round_number(r.stage, r.policy_version)
        written = rows.get((r.stage, r.policy_version, r.new_take), 0)
        yield TakeState(r.stage, round, r.new_take, r.because, r.superseded, written, take_of(r))


def _policies(run: Run) -> Iterator[PolicyState]:
    columns = ("policy_version", "rollouts", "objective")
    updates = {row[0]: row[1:] for row in run.updates().select(columns).collect().rows()}
    metrics = accuracy(run)
    marked = {c.version: c for c in run.checkpoints() if c.in_force}
    for version in sorted({0, *metrics, *updates}):
        trained, objective = updates.get(version, (None, "base" if version == 0 else None))
        marks = marked.get(version)
        gone = marks.let_go.told() if marks and marks.let_go else None
        yield PolicyState(
            version, dict(metrics.get(version, {})), trained, objective,
            marks.tags if marks else (), gone,
        )  # fmt: skip


def _tables(run: Run) -> Iterator[TableState]:
    for name, spec in TABLES.items():
        size = place.size(run.tables.folder, name)
        yield TableState(name, count(run.scan(name)), size, spec.description)


def _frames(run: Run) -> str:
    """Describe the frame store of the config that the run was last continued with."""
    settings = last_config(run).get("frames", {})
    if not settings.get("enabled"):
        return "not kept (frames.enabled = false)"
    path = settings.get("path")
    folder = Path(path) if path else run.path.parent / FRAMES_FOLDER
    used = usage(folder)
    if used is None:
        return f"none kept yet in {folder}"
    most = size_text(int(settings["max_gib"] * 2**30))
    size = size_text(used.bytes)
    return f"{used.videos:,} videos, {size} of at most {most} in {folder}"


def _size(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())
