"""Prompts of checkpoints whose chat template opens a thought, as the Thinking models' does."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_core import torchvision_guard
from opd_core.config.load import load_config
from opd_core.prompts.batches import ExampleEncoder
from opd_core.prompts.encoder import PromptEncoder
from opd_core.rollout.truth import _answer_ids
from opd_core.spans.answer_reader import parse_span
from opd_core.types import GroundingExample, Span

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Whether its template opens a thought -> a folder with the tiny world's processor, and the
    family of a model."""
    torchvision_guard.install()
    from opd_core.tinyworld.models import build_processor

    made = {}
    for thinks in (False, True):
        processor = build_processor()
        if thinks:
            begins = "<|im_start|>assistant\\n"
            assert processor.chat_template.count(begins) == 1
            processor.chat_template = processor.chat_template.replace(begins, begins + "<think>\\n")
        made[thinks] = tmp_path_factory.mktemp(f"thinks-{thinks}")
        processor.save_pretrained(made[thinks])
        (made[thinks] / "config.json").write_text('{"model_type": "qwen3_vl"}')
    return made


@pytest.mark.parametrize("thinks", [False, True])
def test_a_thought_that_was_cut_off_is_no_answer(folders: dict[bool, Path], thinks: bool) -> None:
    encoder = PromptEncoder(folders[thinks])
    assert encoder.chat_text("a").endswith("<think>\n") == thinks
    ids = encoder.tokenizer.encode("maybe 3.0 - 7.5 seconds", add_special_tokens=False)
    text = encoder.decode(ids)
    assert text == "<think>maybe 3.0 - 7.5 seconds" if thinks else "maybe 3.0 - 7.5 seconds"
    assert (parse_span(text) is None) == thinks
    ids = encoder.tokenizer.encode("at 1 - 2</think> 3.0 - 7.5 seconds", add_special_tokens=False)
    assert parse_span(encoder.decode(ids)) == (3.0, 7.5)


def test_the_annotation_as_answer_closes_the_thought(
    folders: dict[bool, Path], tmp_path: Path
) -> None:
    config = load_config(ROOT / "configs" / "tiny.toml", [f"run.path={tmp_path / 'run'}"])
    example = GroundingExample("e", "a.mp4", 9.0, "a dog", Span(1.0, 2.5), "s", "train")
    for thinks, folder in folders.items():
        encoder = ExampleEncoder(config, folder)
        text = encoder.prompts.decode(_answer_ids(config, encoder, example))
        assert text.startswith("<think>\n</think>\n\nThe event") == thinks
        assert parse_span(text) == example.span


def test_the_sentence_is_asked_without_its_full_stop(folders: dict[bool, Path]) -> None:
    assert "sentence 'a man waits', deter" in PromptEncoder(folders[False]).chat_text(
        " a  man waits."
    )
