"""Counts the tokens of a text by the tokenizer of a model's folder, where it has one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from opd_core.adapter_folder import base_folder, is_adapter
from opd_core.plan.lengths import words_of
from opd_core.types import VideoOPDError


def counter(folder: Path) -> Callable[[str], int]:
    """By `tokenizer.json` in the folder; by rule of thumb where it has none."""
    if is_adapter(folder):
        folder = base_folder(folder)
    file = folder / "tokenizer.json"
    if not file.is_file():
        return words_of
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no class of its own
        raise VideoOPDError(
            f"{file} cannot be read ({str(error).splitlines()[0]}); restore it, or remove it and "
            "tokens are counted by rule of thumb"
        ) from None
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
