"""Sentences that would become something else than text: those that hold a control token.

A tokenizer finds its added tokens in any text. A sentence with `<|im_end|>` ends the user's turn,
one with `<|video_pad|>` asks for pixels that nobody has, and some versions of Qwen's processors put
the video where the text says `<|placeholder|>`. Nobody meant such an annotation.

Where a tokenizer is at hand, its own tokens count. Without one (importing annotations), and beside
it, everything of the form `<|...|>` does: it is how all models of this family write them. In any
spelling: full-width signs and characters without width change nothing for a person, and whose
tokenizer folds them is not known.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from typing import Any

_MARKED = re.compile(r"<[|\uff5c][^\s<>|\uff5c]{1,64}[|\uff5c]>")  # also with full-width bars


def control_fault(query: str, known: Collection[str] = ()) -> str | None:
    """Why a sentence cannot be asked, or None. `known`: `control_tokens` of the checkpoint."""
    marked = _MARKED.search(query)
    held = [token for token in known if token in query]
    if marked:
        held.append(marked[0])
    if held:
        token = min(held, key=lambda t: (query.index(t), -len(t)))
    elif respelled := _MARKED.search(_folded(query)):
        token = respelled[0]
    else:
        return None
    return f"the sentence holds {token!r}, which is a control token and no text"


def _folded(query: str) -> str:
    """Write ASCII's signs for full-width ones, and nothing that has no width."""
    if query.isascii():
        return query
    text = unicodedata.normalize("NFKC", query)
    return "".join(c for c in text if unicodedata.category(c) != "Cf")


def control_tokens(tokenizer: Any, chat_template: str) -> frozenset[str]:
    """The texts that a Hugging Face tokenizer takes for control tokens.

    Its special tokens, and of the other added ones (`<think>`, `<tool_call>`) those that the chat
    template writes; a word that somebody added to the vocabulary is none.
    """
    tokens = set(tokenizer.all_special_tokens)
    for added in tokenizer.added_tokens_decoder.values():
        text = added.content
        written = text in chat_template and bool(text.strip()) and not text.strip().isalnum()
        if added.special or written:
            tokens.add(text)
    return frozenset(token for token in tokens if token.strip())
