"""Installs a package of somebody else's: a module, and what an installer writes beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def install(
    folder: Path, module: str, source: str, entry_points: Mapping[str, Mapping[str, str]]
) -> Path:
    """The folder, to be put on the path. `entry_points`: group -> name -> `module:attribute`."""
    information = folder / f"{module}-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    lines = [
        line
        for group, points in entry_points.items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in points.items()), "")
    ]
    (information / "entry_points.txt").write_text("\n".join(lines))
    (folder / f"{module}.py").write_text(source)
    return folder
