"""Models by their names on the hub: `Qwen/Qwen3-VL-8B-Instruct`, `Qwen/Qwen3-VL-8B-Instruct@v1.0`.

A name stands where a folder may: a relative path of that form which is no folder. What it means is
a commit, and that is a folder of the hub's cache (`models--ORG--NAME/snapshots/COMMIT`), from which
the name can be read again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}"
_NAME = re.compile(rf"({_PART}/{_PART})(?:@([^@\s]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
MAIN = "main"


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model on the hub, at a revision: a branch, a tag or a commit."""

    repo: str
    """`Qwen/Qwen3-VL-8B-Instruct`"""
    revision: str = MAIN

    @property
    def commit(self) -> str | None:
        """The commit, where the revision is one: then it can never mean anything else."""
        return self.revision if _COMMIT.fullmatch(self.revision) else None

    @property
    def cached_as(self) -> str:
        """The name of its folder in the hub's cache."""
        return f"models--{self.repo.replace('/', '--')}"

    def download_command(self, *files: str) -> str:
        """What brings it into the cache from a shell; of these files, or whole."""
        revision = () if self.revision == MAIN else ("--revision", self.revision)
        return " ".join(("hf", "download", self.repo, *files, *revision))

    def __str__(self) -> str:
        return self.repo if self.revision == MAIN else f"{self.repo}@{self.revision}"


def hub_model(text: str | Path) -> HubModel | None:
    """The model that a text of the form `org/name` or `org/name@revision` names; else None."""
    match = _NAME.fullmatch(str(text))
    if match is None or any(part in match[1] for part in ("--", "..")):
        return None
    return HubModel(match[1], match[2] or MAIN)


def cached_model(folder: Path) -> HubModel | None:
    """The model, at its commit, whose snapshot in a cache of the hub `folder` is; else None."""
    cached, snapshots, commit = ("", "", "", *folder.parts)[-3:]
    if snapshots != "snapshots" or not _COMMIT.fullmatch(commit):
        return None
    return hub_model(cached.removeprefix("models--").replace("--", "/", 1) + f"@{commit}")


def model_name(folder: Path) -> str:
    """What people call the model in a folder: `Qwen/Qwen3-VL-8B-Instruct@COMMIT` for a snapshot of
    the hub's cache, else the folder's name."""
    return str(cached_model(folder) or folder.name)
