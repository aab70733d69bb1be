"""Where the files are that come with the code: configs, the tiny models, Prefect's settings.

A checkout has them in its root. A wheel brings them in `flows/project/`, where
`build_backend/videoopd_build.py` puts them; nothing is ever written there.
"""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path


def checkout() -> Path | None:
    """The checkout that this program runs from; None where it is installed from a wheel."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "prefect.toml").is_file() else None


def shipped_files() -> Path:
    """The folder that has `prefect.toml` and `configs/`."""
    return checkout() or Path(__file__).resolve().parent / "project"


def version() -> str | None:
    """The version of this program: in a checkout what its pyproject.toml says now, whatever it said
    at the installation; None where this is neither a checkout nor installed."""
    root = checkout()
    if root is not None:
        project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
        return str(project["version"])
    try:
        return installed("videoopd")
    except PackageNotFoundError:
        return None
