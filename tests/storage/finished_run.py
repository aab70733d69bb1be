"""A real run of two small rounds, made once a session, and ways to tamper with a copy of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lance
import pyarrow as pa

from tests.flows.kill_points import run_without_server
from tests.tiny_config import ROOT, as_toml, tiny_settings


@dataclass(frozen=True)
class Finished:
    config: Path
    run: Path
    world: Any
    models: Path


@lru_cache(maxsize=1)
def finished_run(folder: Path, world_folder: Path) -> Finished:
    """Two rounds with models and videos of its own, which tests may change and put back."""
    shutil.copytree(world_folder, folder / "world")
    for role in ("student", "teacher"):
        shutil.copytree(ROOT / "configs" / "tiny" / role, folder / "models" / role)
    world = SimpleNamespace(
        train=folder / "world" / "train.jsonl",
        eval=folder / "world" / "eval.jsonl",
        videos=folder / "world" / "videos",
    )
    config = write_config(folder, world, folder / "run")
    run_without_server(str(config), 2)
    return Finished(config, folder / "run", world, folder / "models")


def write_config(folder: Path, world: Any, run: Path, **changes: Any) -> Path:
    settings = tiny_settings(run, world) | {
        "student.path": str(folder / "models" / "student"),
        "teacher.path": str(folder / "models" / "teacher"),
    }
    path = folder / f"{run.name}.toml"
    path.write_text(as_toml(settings | changes))
    return path


def rewrite(run: Path, table: str, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Changes rows of a table behind the program's back; `change` edits them in place."""
    uri = run / "tables" / f"{table}.lance"
    dataset = lance.dataset(uri)
    rows = dataset.to_table().to_pylist()
    change(rows)
    lance.write_dataset(pa.Table.from_pylist(rows, dataset.schema), uri, mode="overwrite")


def append_again(run: Path, table: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Appends the last row once more, changed, as a foreign program would."""
    uri = run / "tables" / f"{table}.lance"
    dataset = lance.dataset(uri)
    row = dataset.to_table().to_pylist()[-1]
    change(row)
    lance.write_dataset(pa.Table.from_pylist([row], dataset.schema), uri, mode="append")
