"""Which tokens a policy may say, and which two models may be distilled into each other."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from opd_core.model.architectures import QWEN3_VL
from opd_core.model.vocabulary import check_same_vocabulary, excluded_token_ids
from opd_core.types import VideoOPDError


class Tokenizer:
    def __init__(self, vocabulary: dict[str, int]) -> None:
        self._vocabulary = vocabulary

    def get_vocab(self) -> dict[str, int]:
        return self._vocabulary


def test_vision_placeholders_and_rows_without_a_token_are_excluded() -> None:
    tokenizer = Tokenizer({"a": 0, "<|video_pad|>": 2, "b": 3, "<|image_pad|>": 5})
    assert excluded_token_ids(tokenizer, 8, QWEN3_VL.placeholders) == (1, 2, 4, 5, 6, 7)


def folder(path: Path, vocabulary: dict[str, int], added: Iterable[tuple[str, int]] = ()) -> Path:
    path.mkdir()
    content = {
        "model": {"vocab": vocabulary},
        "added_tokens": [{"content": text, "id": i} for text, i in added],
    }
    (path / "tokenizer.json").write_text(json.dumps(content))
    return path


def test_the_same_vocabulary_passes_and_another_is_named(tmp_path: Path) -> None:
    student = folder(tmp_path / "student", {"a": 0, "b": 1}, [("<|im_end|>", 2)])
    check_same_vocabulary(student, folder(tmp_path / "same", {"b": 1, "a": 0, "<|im_end|>": 2}))
    other = folder(tmp_path / "other", {"a": 0, "b": 1}, [("<|im_end|>", 3)])
    with pytest.raises(VideoOPDError, match=r"'<\|im_end\|>': id 2 and 3"):
        check_same_vocabulary(student, other)
    with pytest.raises(VideoOPDError, match="there is no tokenizer.json"):
        check_same_vocabulary(student, tmp_path)
