"""A prompt as a model got it, for people: its words, its special tokens, its video as one piece.

Read from the token ids of a row, so nothing is put together again: what a template, a processor or
a tokenizer did is what is seen. A prompt is thousands of video tokens and a few words; the video,
with the times and marks between its frames, is one part that can still be looked into.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from opd_core.model.architectures import architecture_in
from opd_core.model.token_text import tokenizer_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class PromptPart:
    """A stretch of a prompt."""

    kind: Literal["text", "special", "video"]
    text: str
    """What a video is made of has its repetitions counted: `<|video_pad|> x 64`."""
    video_tokens: int = 0
    """Tokens of it that pixels take the place of."""


def prompt_parts(folder: Path, model: Path, ids: Sequence[int]) -> list[PromptPart]:
    """The parts of a prompt in order, by the tokenizer of `folder`, for the checkpoint `model`.

    Raises `VideoOPDError` where there is no tokenizer, or the family of `model` is not known.
    """
    tokenizer, family = tokenizer_of(folder), architecture_in(model)
    pad = int(json.loads((model / "config.json").read_text())[family.video_token_id])
    special = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items()}
    of_video = [n for n, i in enumerate(ids) if special.get(i) in family.placeholders]
    begin, end = (of_video[0], of_video[-1] + 1) if of_video else (len(ids), len(ids))
    parts = [*_words(ids[:begin], special, tokenizer)]
    if begin < end:
        text = "".join(_counted(_words(ids[begin:end], special, tokenizer)))
        parts.append(PromptPart("video", text, list(ids[begin:end]).count(pad)))
    return [*parts, *_words(ids[end:], special, tokenizer)]


def _words(
    ids: Sequence[int], special: Mapping[int, str], tokenizer: Tokenizer
) -> Iterator[PromptPart]:
    for is_special, group in groupby(ids, special.__contains__):
        if is_special:
            yield from (PromptPart("special", special[i]) for i in group)
        else:
            yield PromptPart("text", tokenizer.decode(list(group), skip_special_tokens=False))


def _counted(parts: Iterator[PromptPart]) -> Iterator[str]:
    for text, group in groupby(parts, lambda part: part.text):
        count = len(list(group))
        yield f"{text} x {count} " if count > 1 else text
