"""Where the files are that come with the code: configs, the tiny models, Prefect's settings.

A checkout has them in its root. A wheel brings them in `flows/project/`, where
`build_backend/videoopd_build.py` puts them; nothing is ever written there.
"""

from __future__ import annotations

from pathlib import Path


def checkout() -> Path | None:
    """The checkout that this program runs from; None where it is installed from a wheel."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "prefect.toml").is_file() else None


def shipped_files() -> Path:
    """The folder that has `prefect.toml` and `configs/`."""
    return checkout() or Path(__file__).resolve().parent / "project"
