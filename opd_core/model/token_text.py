"""The text of single tokens, for people who read a rollout token by token.

Only the `tokenizers` library is imported, so that looking at a run costs no start of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from opd_core.types import VideoOPDError

_NO_CHARACTER = "\N{REPLACEMENT CHARACTER}"


def token_texts(folder: Path | str, ids: Sequence[int]) -> list[str]:
    """The text of each token by itself, special tokens included, by `folder`/tokenizer.json.

    A token that is only a part of a character is shown as the vocabulary writes it; an id that the
    vocabulary does not have, as `<id>`. Raises `VideoOPDError` when there is no such file.
    """
    from tokenizers import Tokenizer

    file = Path(folder) / "tokenizer.json"
    if not file.is_file():
        raise VideoOPDError(f"there is no {file}; put the tokenizer of the checkpoint there")
    tokenizer = Tokenizer.from_file(str(file))
    texts = []
    for token_id in ids:
        text = tokenizer.decode([token_id], skip_special_tokens=False)
        if not text or _NO_CHARACTER in text:
            text = tokenizer.id_to_token(token_id) or f"<{token_id}>"
        texts.append(text)
    return texts
