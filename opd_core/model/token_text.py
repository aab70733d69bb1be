"""The text of single tokens, for people who read a rollout token by token.

Only the `tokenizers` library is imported, so that looking at a run costs no start of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from opd_core.types import VideoOPDError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_NO_CHARACTER = "\N{REPLACEMENT CHARACTER}"


def token_texts(folder: Path | str, ids: Sequence[int]) -> list[str]:
    """The text of each token by itself, special tokens included, by `folder`/tokenizer.json.

    A token that is only a part of a character is shown as the vocabulary writes it; an id that the
    vocabulary does not have, as `<id>`. Raises `VideoOPDError` when there is no such file.
    """
    tokenizer = tokenizer_of(folder)
    texts = []
    for token_id in ids:
        text = tokenizer.decode([token_id], skip_special_tokens=False)
        if not text or _NO_CHARACTER in text:
            text = tokenizer.id_to_token(token_id) or f"<{token_id}>"
        texts.append(text)
    return texts


def tokenizer_of(folder: Path | str) -> Tokenizer:
    """The tokenizer of `folder`/tokenizer.json, read once while nobody changes it: that of a large
    vocabulary takes half a second. Raises `VideoOPDError` when there is no such file."""
    file = Path(folder) / "tokenizer.json"
    if not file.is_file():
        raise VideoOPDError(f"there is no {file}; put the tokenizer of the checkpoint there")
    return _read(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _read(file: Path, changed: int) -> Tokenizer:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(file))
