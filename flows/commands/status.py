"""`videoopd status`: what a run holds, and what its current round still lacks.

`Status` is all of it, for people as lines and tables, for programs as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from rich import box
from rich.table import Table

from flows.console.progress import is_quiet
from flows.console.report import ABSENT, accuracy, console
from flows.stage.left_out import SameReason, left_out
from flows.stage.typed_config import config_words
from opd_core.config.sections import FRAMES_FOLDER
from opd_core.spans.protocols.known import PROTOCOLS
from opd_core.types import VideoOPDError
from storage.frames.store import usage
from storage.stages import round_number
from storage.tables.schemas import TABLES
from storage.tables.takes import take_of

if TYPE_CHECKING:
    from storage.runs.run import Run


@dataclass(frozen=True, slots=True)
class RoundState:
    """How far the round that begins with `policy_version` has come."""

    policy_version: int
    drawn: int
    """Examples."""
    rollouts_per_example: int | None
    """By the config that the run was last used with."""
    rollouts: int
    scored: int
    selected: int | None
    """Rollouts that focus took; None while it has not run."""
    selected_unscored: int
    quarantined: int
    """Items given up in this round."""

    def missing(self) -> str:
        """The next thing to be done, in a few words."""
        if self.drawn == 0:
            return "nothing drawn yet"
        if self.selected is None:
            each = self.rollouts_per_example
            of = f" of {self.drawn * each:,}" if each else ""
            return f"{self.rollouts:,}{of} rollouts sampled, {self.scored:,} scored; not focused"
        if self.selected_unscored:
            return f"{self.selected_unscored:,} of {self.selected:,} selected rollouts not scored"
        return f"{self.selected:,} rollouts selected and scored; the update is missing"


@dataclass(frozen=True, slots=True)
class TableState:
    name: str
    rows: int
    bytes: int
    about: str


@dataclass(frozen=True, slots=True)
class StaleStage:
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
    policy_version: int
    metrics: dict[str, float | None]
    """By the names of `opd_core.spans.metrics`; empty while it is not evaluated."""
    rollouts: int | None
    """Trained on; None for the base."""
    objective: str | None


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
    """The state of a run, as it is or as of the round it was opened at; `config` is the file that
    it was found by."""
    state = round_state(run)
    hint = config or config_words(run)
    first = run.takes().in_the_way("draw", state.policy_version)
    go_on = first.command(hint) if first else f"videoopd run {hint}"
    stale = run.takes().stale()
    current = state.policy_version
    later = min((s.policy_version for s in stale if s.stage == "update"), default=current)
    return Status(
        run=str(run.path),
        run_id=run.run_id,
        created_at=run.created_at,
        bytes=_size(run.path),
        as_of_round=run.round,
        round=current + 1,
        missing=state.missing(),
        state=state,
        data=_data(run),
        frames=_frames(run),
        config=hint,
        goes_on=go_on if run.round is None else None,
        stale=tuple(StaleStage(s.stage, s.round, s.reason(), s.command(hint)) for s in stale),
        stale_rounds=tuple(range(later + 2, current + 2)),
        takes=tuple(_takes(run)),
        policies=tuple(_policies(run)),
        tables=tuple(_tables(run)),
        left_out=tuple(left_out(run)),
    )


def print_status(run: Run, config: str | None = None, as_json: bool = False) -> None:
    """Print the state of a run; `config` is the file that it was found by."""
    found = status_of(run, config)
    out = console()
    if as_json:
        print(json.dumps(asdict(found), indent=1))
        return
    if is_quiet():
        out.print(f"round {found.round}: {found.missing}", markup=False, soft_wrap=True)
        return
    as_of = "" if found.as_of_round is None else f" as of round {found.as_of_round}"
    out.print(
        f"run       {found.run}{as_of}  ({_bytes(found.bytes)}, begun {found.created_at[:19]})",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    out.print(f"policy    {found.state.policy_version}  (newest committed)")
    given_up = f"; {found.state.quarantined:,} quarantined" if found.state.quarantined else ""
    out.print(f"round {found.round:<3} {found.missing}{given_up}", soft_wrap=True)
    out.print(f"data      {found.data.line()}", markup=False, soft_wrap=True)
    out.print(f"frames    {found.frames}", markup=False, soft_wrap=True)
    if found.goes_on:
        out.print(f"continue  {found.goes_on}", markup=False, soft_wrap=True)
    for line in _reruns(found):
        out.print(line, markup=False, soft_wrap=True)
    out.print(_policies_table(found))
    out.print(_tables_table(found))
    if found.left_out:
        out.print("quarantined:")
        for item in found.left_out:
            line = f"  {item.count:>6,}  {item.stage}: {item.reason()}"
            out.print(line, markup=False, soft_wrap=True)


def _data(run: Run) -> DataState:
    counts = dict(run.present().group_by("split").len().collect().iter_rows())
    gone = _count(run.examples()) - sum(counts.values())
    return DataState(counts.get("train", 0), counts.get("eval", 0), gone)


def round_state(run: Run) -> RoundState:
    """Counts of the current round, from the tables."""
    versions = run.updates().select(pl.col("policy_version").max()).collect().item()
    version = versions or 0
    this = pl.col("policy_version") == version
    draws, rollouts = run.draws().filter(this), run.rollouts().filter(this)
    scores, selections = run.teacher_scores().filter(this), run.selections().filter(this)
    selected = selections.filter(pl.col("selected")).select("rollout_id")
    return RoundState(
        policy_version=version,
        drawn=_count(draws),
        rollouts_per_example=_config(run).get("rollout", {}).get("rollouts_per_example"),
        rollouts=_count(rollouts),
        scored=scores.select(pl.col("rollout_id").n_unique()).collect().item(),
        selected=_count(selected) if _count(selections) else None,
        selected_unscored=_count(selected.join(scores, on="rollout_id", how="anti")),
        quarantined=_count(run.quarantine().filter(this)),
    )


def _reruns(found: Status) -> Iterator[str]:
    """What is stale, with the command that runs it again, and which takes superseded what."""
    for stale in found.stale:
        yield f"stale     {stale.why}; run again: {stale.command}"
    if found.stale_rounds:
        rounds = ", ".join(map(str, found.stale_rounds))
        first = found.stale_rounds[0] - 1
        yield f"stale     all of round {rounds}: update of round {first} has to be run again first"
    if found.stale and found.goes_on:
        yield f"          all of it: videoopd stage stale {found.config}"
    for take in found.takes:
        yield (
            f"rerun     {take.name} ({take.why}): "
            f"{take.superseded:,} rows superseded, {take.written:,} written"
        )


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
    for version in sorted({0, *metrics, *updates}):
        trained, objective = updates.get(version, (None, "base" if version == 0 else None))
        yield PolicyState(version, dict(metrics.get(version, {})), trained, objective)


def _policies_table(found: Status) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="policies", title_justify="left")
    shown = {
        "mIoU": "strict_miou",
        "R1@0.3": "strict_r1_30",
        "R1@0.5": "strict_r1_50",
        "R1@0.7": "strict_r1_70",
        **{f"{name} {title}": metric for name, title, metric in _other_protocols()},
    }
    for name in ("policy", "examples", *shown, "rollouts trained on", "objective"):
        table.add_column(name, justify="right")
    for policy in found.policies:
        values = [policy.metrics.get(metric) for metric in shown.values()]
        cells = [ABSENT if value is None else f"{value:.3f}" for value in values]
        trained = "" if policy.rollouts is None else str(policy.rollouts)
        asked = policy.metrics.get("examples")
        examples = ABSENT if asked is None else f"{int(asked):,}"
        table.add_row(str(policy.policy_version), examples, *cells, trained, policy.objective or "")
    return table


def _other_protocols() -> Iterator[tuple[str, str, str]]:
    """Name, title and metric of one number a protocol: R1@0.5, or mIoU where it does not count
    that."""
    for name in PROTOCOLS:
        if name != "strict":
            metrics = PROTOCOLS[name].metrics
            end = "r1_50" if "r1_50" in metrics else "miou"
            yield name, metrics[end], f"{name}_{end}"


def _tables(run: Run) -> Iterator[TableState]:
    for name, spec in TABLES.items():
        size = _size(run.path / "tables" / f"{name}.lance")
        yield TableState(name, _count(run.scan(name)), size, spec.description)


def _tables_table(found: Status) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="tables", title_justify="left")
    table.add_column("table")
    table.add_column("rows", justify="right")
    table.add_column("on disk", justify="right")
    table.add_column("")
    for state in found.tables:
        table.add_row(state.name, f"{state.rows:,}", _bytes(state.bytes), state.about)
    return table


def _frames(run: Run) -> str:
    """The frame store of the config that the run was last continued with."""
    settings = _config(run).get("frames", {})
    if not settings.get("enabled"):
        return "not kept (frames.enabled = false)"
    path = settings.get("path")
    folder = Path(path) if path else run.path.parent / FRAMES_FOLDER
    found = usage(folder)
    if found is None:
        return f"none kept yet in {folder}"
    most = _bytes(settings["max_gib"] * 2**30)
    return f"{found.videos:,} videos, {_bytes(found.bytes)} of at most {most} in {folder}"


def _count(frame: pl.LazyFrame) -> int:
    return int(frame.select(pl.len()).collect().item())


def _config(run: Run) -> dict[str, Any]:
    """The config that the run was last continued with."""
    files = sorted((run.path / "configs").glob("*.json"), key=lambda file: file.stat().st_mtime)
    try:
        return dict(json.loads(files[-1].read_text())) if files else {}
    except (OSError, ValueError):
        raise VideoOPDError(
            f"{files[-1]} cannot be read; restore it from a copy of the run"
        ) from None


def _size(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
