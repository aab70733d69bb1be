"""Which tokens a policy may say.

A student can sample `<|video_pad|>` or another vision placeholder, and then the next forward pass
fails, because there is a placeholder without pixels. These tokens, and rows of the embedding that
no tokenizer knows, are left out of the distribution everywhere: in sampling, and in the student's
and the teacher's log-softmax. So all log-probabilities speak of one distribution.
"""

from __future__ import annotations

import filecmp
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from opd_core.types import VideoOPDError


class HasVocabulary(Protocol):
    """What is asked here of a Hugging Face tokenizer."""

    def get_vocab(self) -> dict[str, int]: ...


def excluded_token_ids(
    tokenizer: HasVocabulary, vocab_size: int, placeholders: Sequence[str]
) -> tuple[int, ...]:
    """Ids in [0, vocab_size) that no engine may sample, ascending.

    `tokenizer` is a Hugging Face tokenizer; `vocab_size` is the number of rows of `lm_head`;
    `placeholders` are the family's (`Architecture.placeholders`).
    """
    known = tokenizer.get_vocab()
    placeholder_ids = {known[token] for token in placeholders if token in known}
    untokenizable = set(range(vocab_size)) - set(known.values())
    return tuple(sorted(placeholder_ids | untokenizable))


def end_token_ids(generation_config: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's, and those of a model's generation config."""
    ids = {tokenizer.eos_token_id}
    configured = getattr(generation_config, "eos_token_id", None)
    ids.update(configured if isinstance(configured, list) else [configured])
    return frozenset(i for i in ids if i is not None)


def check_same_vocabulary(student: Path, teacher: Path) -> None:
    """Raise `VideoOPDError` unless both folders' tokenizers map the same tokens to the same ids."""
    if _same_file(student, teacher):  # as published: to read 150,000 tokens twice takes a second
        return
    ours, theirs = _vocabulary(student), _vocabulary(teacher)
    if ours == theirs:
        return
    differing = sorted(t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t))
    token = differing[0]
    raise VideoOPDError(
        f"student {student} and teacher {teacher} have different vocabularies "
        f"({len(differing)} tokens differ, the first is {token!r}: id {ours.get(token)} and "
        f"{theirs.get(token)}); distillation on tokens needs two models of one tokenizer"
    )


def _same_file(student: Path, teacher: Path) -> bool:
    ours, theirs = (folder / "tokenizer.json" for folder in (student, teacher))
    return ours.is_file() and theirs.is_file() and filecmp.cmp(ours, theirs, shallow=False)


def _vocabulary(folder: Path) -> dict[str, int]:
    path = folder / "tokenizer.json"
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise VideoOPDError(
            f"there is no tokenizer.json in {folder}; give a folder of a Hugging Face checkpoint"
        ) from None
    vocabulary = dict(content["model"]["vocab"])
    vocabulary.update({t["content"]: t["id"] for t in content.get("added_tokens", [])})
    return vocabulary
