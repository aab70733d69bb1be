"""What makes an annotation unusable before anything is computed: control tokens, another length."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_core.annotations.control_tokens import control_fault, control_tokens
from opd_core.types import VideoOPDError
from opd_core.video.durations import duration_fault
from opd_core.video.presence import refuse_missing
from tests.known import known


@pytest.mark.parametrize(
    "sentence",
    [
        "<|video_pad|>",
        "a<|im_end|>b",
        "<|placeholder|>",
        "x <|reserved_special_token_7|>",
        "<\uff5cUser\uff5c> says",
        "\uff1c|im_end|\uff1e",
        "<\u200b|im_\u2060end|\u200b>",
        "a <|VIDEO_PAD|> b",
    ],
)
def test_what_is_written_like_a_control_token_is_one_without_a_tokenizer(sentence: str) -> None:
    assert "control token" in known(control_fault(sentence))


@pytest.mark.parametrize(
    "sentence",
    [
        "a man opens a door",
        "a < b | c > d",
        "the |x| of <y>",
        "<| |>",
        "he says <think>",
        "100 %",
        "\uff1c左\uff1e和右｜的门",
    ],
)
def test_plain_sentences_are_none(sentence: str) -> None:
    assert control_fault(sentence) is None


def test_the_first_and_longest_token_is_named() -> None:
    tokens = {"<think>", "[STOP]", "[STOP]s"}
    assert "'[STOP]s'" in known(control_fault("a [STOP]s <think>", tokens))


def test_the_tokens_of_a_tokenizer_are_its_special_ones_and_those_of_the_template() -> None:
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    from tests.tiny_config import ROOT

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "configs" / "tiny" / "student")
    for text, special in (("<think>", False), ("<tool>", False), ("skateboard", False),
                          ("user", False), ("[STOP]", True)):  # fmt: skip
        tokenizer.add_tokens([AddedToken(text, special=special)], special_tokens=special)
    template = "{{ '<|im_start|>user' }}<think>"
    found = control_tokens(tokenizer, template)
    assert {"<think>", "[STOP]", "<|im_end|>", "<|video_pad|>", "<|vision_start|>"} <= found
    assert not found & {"skateboard", "user", "<tool>"}


@pytest.mark.parametrize(
    ("annotated", "real", "other"),
    [
        (6.0, 6.9, False),  # a second, of any video
        (6.0, 7.1, True),
        (6.0, 4.9, True),
        (150.0, 147.1, False),  # a nominal length
        (150.0, 146.9, True),
        (3600.0, 3600.0 * 24 / 25, True),  # a film at another speed
    ],
)
def test_another_length_is_another_video(annotated: float, real: float, other: bool) -> None:
    assert (duration_fault(annotated, real) is not None) == other


def test_most_files_missing_is_the_folders_fault(tmp_path: Path) -> None:
    names = [f"{n}.mp4" for n in range(4)]
    (tmp_path / "0.mp4").touch()
    (tmp_path / "1.mp4").touch()
    refuse_missing(tmp_path, names)
    refuse_missing(tmp_path, ["0.mp4", "\0"])
    (tmp_path / "1.mp4").unlink()
    with pytest.raises(VideoOPDError, match=r"3 of 4 videos .* the first '1\.mp4'"):
        refuse_missing(tmp_path, names)
    refuse_missing(tmp_path, names, annotated=lambda: ["0.mp4"])
    with pytest.raises(VideoOPDError, match="3 of 4 videos"):
        refuse_missing(tmp_path, names, annotated=lambda: names)
    with pytest.raises(VideoOPDError, match="3 of 4 videos"):
        refuse_missing(tmp_path, names, annotated=lambda: [])
    for name in ("1.mp4", "2.mp4"):
        (tmp_path / name).touch()
    refuse_missing(tmp_path, names, {"0.mp4", "1.mp4"}, lambda: names)
    with pytest.raises(VideoOPDError, match=r"4 of 4 videos .* the first '3\.mp4'"):
        refuse_missing(tmp_path, names, {"0.mp4", "1.mp4", "2.mp4"}, lambda: names)
    with pytest.raises(VideoOPDError, match="is no folder"):
        refuse_missing(tmp_path / "0.mp4", [])
