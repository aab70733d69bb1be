"""The tokenizer of a run: what turns the token ids of its rows into text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from opd_core.model.token_text import token_texts
from storage.audit.links import base_path

if TYPE_CHECKING:
    from storage.runs.run import Run


def texts_of(run: Run) -> Callable[[Sequence[int]], list[str]] | None:
    """Find what reads token ids, the tokenizer of the run's newest checkpoint; None without one.

    For `run.tokens(texts_of(run))`.
    """
    folder = tokenizer_folder(run)
    return None if folder is None else partial(token_texts, folder)


def tokenizer_folder(run: Run) -> Path | None:
    """The folder of the run's newest checkpoint that has a tokenizer; None: none has."""
    folders = sorted((run.path / "policies").glob("v*"), key=lambda folder: folder.stat().st_mtime)
    for folder in [*reversed(folders), base_path(run)]:
        if (folder / "tokenizer.json").is_file():
            return folder
    return None
