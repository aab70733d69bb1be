"""Reads what trackers have kept, each in its own way: (name, number on its axis) -> values."""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Kept = dict[tuple[str, int], list[float]]
BLOCK = 32768
"""Of a .wandb file, which is a LevelDB log."""
AXES = {"round", "step"}


def tensorboard(folder: Path) -> Kept:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    made.Reload()
    kept: Kept = {}
    for name in made.Tags()["scalars"]:
        for scalar in made.Scalars(name):
            kept.setdefault((name, scalar.step), []).append(scalar.value)
    return kept


def trackio(folder: Path) -> Kept:
    kept: Kept = {}
    for database in folder.glob("*.db"):
        rows = sqlite3.connect(database).execute("SELECT step, metrics FROM metrics").fetchall()
        for step, text in rows:
            _add(kept, {"step": step, **json.loads(text)})
    return kept


def wandb(folder: Path) -> Kept:
    from wandb.proto import wandb_internal_pb2 as proto

    kept: Kept = {}
    (file,) = folder.rglob("*.wandb")
    for raw in _log_records(file.read_bytes()):
        record = proto.Record()  # type: ignore[attr-defined]
        record.ParseFromString(raw)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            _add(kept, {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items})
    return kept


def mlflow(folder: Path) -> Kept:
    kept: Kept = {}
    database = sqlite3.connect(folder / "mlflow.db")
    for name, number, value in database.execute("SELECT key, step, value FROM metrics"):
        kept.setdefault((name, number), []).append(value)
    return kept


READERS: dict[str, Callable[[Path], Kept]] = {
    "tensorboard": tensorboard,
    "trackio": trackio,
    "wandb": wandb,
    "mlflow": mlflow,
}


def _add(kept: Kept, row: dict[str, Any]) -> None:
    number = row["round"] if "round" in row else row["step"]
    for name, value in row.items():
        if name not in AXES and not name.startswith("_"):
            kept.setdefault((name, number), []).append(value)


def _log_records(data: bytes) -> Iterator[bytes]:
    at, parts = 7, b""
    while at + 7 <= len(data):
        if (left := BLOCK - at % BLOCK) < 7:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield parts
            parts = b""
