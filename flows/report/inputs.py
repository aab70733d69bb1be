"""What was run: data, models, code, machine, seeds, rounds, and the config as it was given."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from flows.console.report import size_text
from flows.report.side import Side
from flows.report.table import Cell, Table, beside, shortened, whole
from opd_core.hub.name import cached_model
from storage.asking.config_in_force import flat
from storage.asking.diff import diff
from storage.runs import run_folder

ROUNDS_SHOWN = 60
STOPS_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that the runs were made from."""

    facts: Table
    set_by_hand: Table
    """Settings that are not the defaults."""
    rounds: tuple[Table, ...]
    """What each round trained on, with which config and code; a table a run."""
    differences: Table | None
    """Of two runs, in what they differ."""
    configs: Table
    """Every key."""


def inputs(sides: Sequence[Side]) -> Inputs:
    """Read it from the runs. Raises `VideoOPDError` where a config that rows name is gone."""
    configs = {side.name: _shown(side.settings) for side in sides}
    default = _shown(_defaults())
    changed = {
        name: {key: value for key, value in config.items() if value != default.get(key, "unset")}
        for name, config in configs.items()
    }
    keys = dict.fromkeys(key for config in changed.values() for key in config)
    by_hand = {
        name: {key: config[key] for key in keys if key in config}
        for name, config in configs.items()
    }
    facts = {side.name: dict(_facts(side)) for side in sides}
    return Inputs(
        facts=beside("The run" if len(sides) == 1 else "The runs", facts),
        set_by_hand=beside("Settings that are not the defaults", by_hand),
        rounds=tuple(_rounds(side) for side in sides),
        differences=_differences(*sides) if len(sides) == 2 else None,
        configs=beside("As kept in the run, with absolute paths", configs),
    )


def _facts(side: Side) -> Iterator[tuple[str, Cell]]:
    run, content = side.run, run_folder.read(side.run.path)
    yield "run", run.run_id
    yield "folder", str(run.path)
    yield "began", run.created_at[:19].replace("T", " ") + " UTC"
    yield "as of", "now" if run.round is None else f"round {run.round}"
    committed = run.updates().select("policy_version", "policy_hash", "written_at").collect()
    last = committed.sort("policy_version").tail(1).to_dicts()
    yield "rounds", whole(committed.height)
    yield "last round", f"{last[0]['written_at']:%Y-%m-%d %H:%M:%S} UTC" if last else None
    yield (
        "newest policy",
        f"{last[0]['policy_version']}, weights {last[0]['policy_hash']}" if last else None,
    )
    yield "student", _model(content["student"])
    for at, teacher in enumerate(run_folder.teachers(content), start=1):
        yield ("teacher" if at == 1 else f"teacher {at}"), _model(teacher)
    yield from _data(side)
    source = run_folder.config_source(run.path)
    yield "last continued with", str(source.file) if source else None
    yield "and overridden by", ", ".join(source.overrides) or "nothing" if source else None
    yield "config", f"hash {side.config.hash}"
    yield "seed", str(side.settings.get("run.seed"))
    rollouts = run.rollouts()
    yield "code", _values(rollouts, "git_commit") or _values(run.examples(), "git_commit")
    yield (
        "sampled by",
        _values(rollouts.select(pl.format("{}, {}", "engine", "engine_version").alias("it")), "it"),
    )
    yield "scored by", _values(run.teacher_scores(), "scorer")
    yield "processor", _values(rollouts, "processor_hash")
    yield "device", _device(side.settings)
    yield "peak memory", _memory(side)
    yield "name of the computer", None  # rows do not have it


def _model(named: Mapping[str, str]) -> str:
    """Name on the hub, or the folder's, and the weights."""
    path = Path(named["path"])
    return f"{cached_model(path) or path.name}, weights {named['weights_hash']}"


def _data(side: Side) -> Iterator[tuple[str, Cell]]:
    present = side.run.present().select("split", "video_path", "source").collect()
    for split in ("train", "eval"):
        mine = present.filter(pl.col("split") == split)
        counts = f"sentences {mine.height:,}, videos {mine['video_path'].n_unique():,}"
        yield f"{split} data", f"{side.settings.get(f'data.{split}')}: {counts}"
    sources = present.group_by("source").len().sort("source").iter_rows()
    yield "sources", ", ".join(f"{name} ({count:,})" for name, count in sources) or None
    gone = side.run.examples().select(pl.len()).collect().item() - present.height
    yield "no longer annotated", whole(gone)
    drawn = side.run.draws().select("example_id").collect()["example_id"]
    yield "drawn", f"{len(drawn):,} times, {drawn.n_unique():,} sentences" if len(drawn) else None


def _device(settings: Mapping[str, object]) -> Cell:
    said = f"{settings.get('machine.device')}, threads {settings.get('machine.threads')}"
    workers = settings.get("cluster.workers")
    return said if workers is None else f"{said}, {workers} workers"


def _memory(side: Side) -> Cell:
    if side.stages.is_empty():
        return None
    top = side.stages.sort("peak_memory").row(-1, named=True)
    where = "on the accelerator" if top["memory_of"] == "cuda" else "of the process"
    return f"{size_text(top['peak_memory'], 1)} {where}, in {top['stage']}"


def _values(rows: pl.LazyFrame, column: str) -> Cell:
    known = rows.select(pl.col(column).unique()).collect().to_series().drop_nulls()
    return "; ".join(sorted(known.to_list())) or None


def _rounds(side: Side) -> Table:
    columns = ("policy_version", "config_hash", "git_commit", "written_at")
    wrote = {row[0]: row[1:] for row in side.run.updates().select(columns).collect().iter_rows()}
    rows: list[tuple[Cell, ...]] = []
    made = side.rounds.filter(pl.col("policy_version") > 0).to_dicts()
    for row in made:
        config, commit, at = wrote[row["policy_version"]]
        counts = ("drawn", "rollouts", "selected", "trained_rollouts", "trained_tokens", "steps")
        numbers = (whole(row[name]) for name in counts)
        code = commit and commit[:8] + ("-dirty" if commit.endswith("-dirty") else "")
        said = (row["objective"], config, code, f"{at:%Y-%m-%d %H:%M}")
        rows.append((str(row["policy_version"]), *numbers, *said))
    head = (
        "round", "drawn", "rollouts", "selected", "trained", "tokens", "steps", "objective",
        "config", "code", "written (UTC)",
    )  # fmt: skip
    stopped = [f"{r['policy_version']}: {r['stopped_early']}" for r in made if r["stopped_early"]]
    note = f"Stopped early: {'; '.join(stopped[-STOPS_SHOWN:])}." if stopped else ""
    return Table(f"Rounds of {side.name}", head, shortened(rows, ROUNDS_SHOWN), note=note)


def _differences(a: Side, b: Side) -> Table:
    made = diff(a.run, b.run)
    rows = tuple((row.name, _said(row.a), _said(row.b)) for row in made.inputs)
    same = [name for name in made.same if not name.startswith("config ")]
    note = f"The same: {', '.join(same)}." if same else ""
    note = note if rows else f"No input differs. {note}"
    return Table("In what they differ", ("", a.name, b.name), rows, words=True, note=note)


def _defaults() -> dict[str, object]:
    """Every key that has a default, as the JSON of a config says it."""
    from pydantic import BaseModel
    from pydantic_core import to_jsonable_python

    from opd_core.config.load import Config

    def of(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, object]]:
        for name, field in section.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from of(kind, f"{prefix}{name}.")
            elif not field.is_required():
                value = to_jsonable_python(field.get_default(call_default_factory=True))
                yield from flat({name: value}, prefix).items()

    return dict(of(Config, ""))


def _shown(config: Mapping[str, object]) -> dict[str, Cell]:
    return {key: _said(value) for key, value in sorted(config.items())}


def _said(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
