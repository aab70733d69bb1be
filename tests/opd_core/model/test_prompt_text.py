"""A prompt as people read it: special tokens stay visible, the video is one piece."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from opd_core.model.prompt_text import PromptPart, prompt_parts
from opd_core.types import VideoOPDError

FOLDER = Path(__file__).resolve().parents[3] / "configs" / "tiny" / "teacher"
FRAME = "<|vision_start|><|video_pad|><|video_pad|><|vision_end|>"


def ids_of(text: str) -> list[int]:
    tokenizer: Tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def test_the_video_is_one_part_with_its_tokens_counted() -> None:
    video = f"<0.2 seconds>{FRAME}<1.2 seconds>{FRAME}"
    text = f"<|im_start|>user\n<|vision_start|>{video}<|vision_end|>Find it.<|im_end|>\n"
    parts = prompt_parts(FOLDER, FOLDER, ids_of(text))
    kinds = [part.kind for part in parts]
    assert kinds == ["special", "text", "video", "text", "special", "text"]
    shown = "<|vision_start|><|video_pad|> x 2 <|vision_end|>"
    assert parts[2].video_tokens == 4
    assert parts[2].text.startswith(f"<|vision_start|><0.2 seconds>{shown}<1.2 seconds>")
    around = [part.text for part in parts if part.kind != "video"]
    assert around == ["<|im_start|>", "user\n", "Find it.", "<|im_end|>", "\n"]


def test_a_prompt_without_video_is_its_words() -> None:
    parts = prompt_parts(FOLDER, FOLDER, ids_of("<|im_start|>user"))
    assert parts == [PromptPart("special", "<|im_start|>"), PromptPart("text", "user")]
    assert prompt_parts(FOLDER, FOLDER, []) == []


def test_without_a_tokenizer_or_a_known_family_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(VideoOPDError, match="there is no .*tokenizer.json"):
        prompt_parts(tmp_path, FOLDER, [1])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "other"}))
    with pytest.raises(VideoOPDError, match="model_type 'other'"):
        prompt_parts(FOLDER, tmp_path, [1])
