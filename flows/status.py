"""`videoopd status`: what a run holds, and what its current round still lacks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from rich import box
from rich.table import Table

from flows.read_data import left_out
from flows.report import accuracy, console
from flows.rerun import command
from opd_core.config_sections import FRAMES_FOLDER
from opd_core.faults import NEXT_ROUND, ONE_MORE_ROUND
from opd_core.protocols import PROTOCOLS
from storage.frames import usage
from storage.schemas import TABLES
from storage.takes import take_of

if TYPE_CHECKING:
    from storage.run import Run


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


def print_status(run: Run, config: str | None = None) -> None:
    """Print the state of a run; `config` is the file that it was found by."""
    out = console()
    out.print(f"run       {run.path}  ({_bytes(_size(run.path))}, begun {run.created_at[:19]})")
    state = round_state(run)
    out.print(f"policy    {state.policy_version}  (newest committed)")
    given_up = f"; {state.quarantined:,} quarantined" if state.quarantined else ""
    out.print(f"round {state.policy_version + 1:<3} {state.missing()}{given_up}")
    out.print(f"data      {_data(run)}", markup=False)
    out.print(f"frames    {_frames(run)}", markup=False)
    hint = config or _config_hint(run)
    first = run.takes().in_the_way("draw", state.policy_version)
    go_on = command(first, hint) if first else f"videoopd run {hint}"
    out.print(f"continue  {go_on}", markup=False, soft_wrap=True)
    for line in _reruns(run, hint):
        out.print(line, markup=False, soft_wrap=True)
    out.print(_policies(run))
    out.print(_tables(run))
    lines = list(_set_aside(run))
    if lines:
        out.print("quarantined:")
        for line in lines:
            out.print(line, markup=False)


def _data(run: Run) -> str:
    """What the annotation files hold, as last read, and what they no longer hold."""
    now = run.present().group_by("split").len().collect()
    counts = dict(now.iter_rows())
    text = f"{counts.get('train', 0):,} train and {counts.get('eval', 0):,} eval examples"
    gone = _count(run.examples()) - sum(counts.values())
    return text + (f"; {gone:,} that are no longer annotated are kept as evidence" * bool(gone))


def _set_aside(run: Run) -> Iterator[str]:
    """A line a stage and reason: of annotations, those that are in the files still."""
    reasons = left_out(run)
    for reason in sorted(set(reasons)):
        yield f"  {reasons.count(reason):>6,}  import: {reason}"
    rows = run.quarantine().filter(pl.col("stage") != "import")
    found = rows.group_by("stage", "reason", "kind").len().sort("stage", "reason", "kind").collect()
    for stage, reason, kind, count in found.iter_rows():
        again = "; tried again in the next round" if kind in NEXT_ROUND | ONE_MORE_ROUND else ""
        yield f"  {count:>6,}  {stage}: {reason}{again}"


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


def _reruns(run: Run, config: str) -> Iterator[str]:
    """What is stale, with the command that runs it again, and which takes superseded what."""
    takes = run.takes()
    rows = run.rows_by_take()
    for stale in takes.stale():
        yield f"stale     {stale.reason()}; run again: {command(stale, config)}"
    later = min((s.policy_version for s in takes.stale() if s.stage == "update"), default=None)
    current = round_state(run).policy_version
    if later is not None and later + 1 <= current:
        rounds = ", ".join(str(number) for number in range(later + 2, current + 2))
        first = later + 1
        yield f"stale     all of round {rounds}: update of round {first} has to be run again first"
    for r in takes.reruns:
        count = rows.get((r.stage, r.policy_version, r.new_take), 0)
        yield (
            f"rerun     {take_of(r)} ({r.because}): "
            f"{r.superseded:,} rows superseded, {count:,} written"
        )


def _policies(run: Run) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="policies", title_justify="left")
    shown = {
        "mIoU": "strict_miou",
        "R1@0.3": "strict_r1_30",
        "R1@0.5": "strict_r1_50",
        "R1@0.7": "strict_r1_70",
        **{f"{p.name} R1@0.5": f"{p.name}_r1_50" for p in PROTOCOLS if p.name != "strict"},
    }
    for name in ("policy", "examples", *shown, "rollouts trained on", "objective"):
        table.add_column(name, justify="right")
    columns = ("policy_version", "rollouts", "objective")
    updates = {row[0]: row[1:] for row in run.updates().select(columns).collect().rows()}
    metrics = accuracy(run)
    for version in sorted({0, *metrics, *updates}):
        values = [metrics.get(version, {}).get(metric) for metric in shown.values()]
        trained, objective = updates.get(version, ("", "base" if version == 0 else ""))
        cells = ["-" if value is None else f"{value:.3f}" for value in values]
        asked = metrics.get(version, {}).get("examples")
        examples = "-" if asked is None else f"{int(asked):,}"
        table.add_row(str(version), examples, *cells, str(trained), objective)
    return table


def _tables(run: Run) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="tables", title_justify="left")
    table.add_column("table")
    table.add_column("rows", justify="right")
    table.add_column("on disk", justify="right")
    table.add_column("")
    for name, spec in TABLES.items():
        size = _bytes(_size(run.path / "tables" / f"{name}.lance"))
        rows = _count(run.scan(name))
        table.add_row(name, f"{rows:,}", size, spec.description)
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
    return dict(json.loads(files[-1].read_text())) if files else {}


def _config_hint(run: Run) -> str:
    """The config of this project whose run this is, where it can be told."""
    for file in sorted(Path("configs").glob("*.toml")):
        try:
            from opd_core.config import load_config

            if load_config(file).run.path == run.path:
                return str(file)
        except Exception:  # a broken neighbour must not spoil the status
            continue
    return "CONFIG"


def _size(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
