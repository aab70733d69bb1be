"""The config that a run, or a round of it, was made with, and a config as flat keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from opd_core.types import VideoOPDError
from storage.runs import run_folder

if TYPE_CHECKING:
    from storage.runs.run import Run


@dataclass(frozen=True, slots=True)
class ConfigInForce:
    """A config as the run keeps it: all keys, paths absolute."""

    hash: str
    """As rows name it."""
    content: Mapping[str, object]


def config_in_force(run: Run) -> ConfigInForce:
    """Read the config of the newest update; before one of the newest rollouts, or the first.

    Raises `VideoOPDError` where it is gone or damaged.
    """
    for rows in (run.updates(), run.rollouts()):
        known = rows.select("policy_version", "config_hash").sort("policy_version")
        newest = known.select(pl.col("config_hash").last()).collect()
        if (digest := newest.item()) is not None:
            break
    else:
        digest = str(run_folder.read(run.path)["config_hash"])
    file = run.path / "configs" / f"{digest}.json"
    try:
        content: dict[str, object] = json.loads(file.read_text())
    except (OSError, ValueError):
        raise VideoOPDError(
            f"{file} cannot be read, and rows name it; restore it from a copy of the run"
        ) from None
    return ConfigInForce(digest, content)


def flat(content: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Make `{"update.lora.rank": 8}` of sections in sections; of several, each by its name."""
    made: dict[str, object] = {}
    for key, value in content.items():
        if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            value = {str(one.get("name", at)): one for at, one in enumerate(value)}  # of teachers
        if isinstance(value, dict):
            made |= flat(value, f"{prefix}{key}.")
        else:
            made[f"{prefix}{key}"] = value
    return made
