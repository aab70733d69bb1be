"""What the pipeline makes of Qwen3-VL's own vocabulary: prompts, time stamps, answers, controls."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st

from opd_core.annotations.control_tokens import control_fault, control_tokens
from opd_core.config.load import load_config
from opd_core.extensions import TEMPLATES
from opd_core.model.architectures import QWEN3_VL
from opd_core.model.token_text import token_texts
from opd_core.model.vocabulary import end_token_ids, excluded_token_ids
from opd_core.plan.lengths import Annotations, Lengths
from opd_core.plan.shapes import shape_in
from opd_core.plan.tokens import counter
from opd_core.prompts.encoder import PromptEncoder
from opd_core.prompts.faults import CheckedPrompts, UnusableExample
from opd_core.types import Span
from opd_core.video.clip import VideoClip
from tests import qwen_vocabulary
from tests.qwen_vocabulary import CONTROL, RANKS, ROWS, SPECIAL, SPLIT
from tests.tiny_config import ROOT

pytestmark = pytest.mark.slow

IDS = {token: RANKS + i for i, token in enumerate(CONTROL)}
PIECES = (
    "The event", " happens in ", "12.5", " - ", "3", " seconds", "\n", "\n\n", "  ", "\t",
    "<answer>", '{"start": ', "开门", "é", "'s", "DON'T", "🎬", "_", "...", "<0.3 seconds>",
)  # fmt: skip
TEXTS = st.one_of(
    st.text(),
    st.text(st.characters(categories=("L", "N", "Z", "P", "S"))),
    st.lists(st.sampled_from([*PIECES, *CONTROL])).map("".join),
)  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> PromptEncoder:
    """As any checkpoint's: from a folder that the processor was saved into."""
    folder = tmp_path_factory.mktemp("qwen")
    qwen_vocabulary.processor().save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "qwen3_vl"}')
    return PromptEncoder(folder)


@pytest.fixture(scope="module")
def reference() -> tiktoken.Encoding:
    """The same ranks in the library that they were published for."""
    return tiktoken.Encoding(
        "qwen", pat_str=SPLIT, mergeable_ranks=qwen_vocabulary.ranks(), special_tokens=IDS
    )


def ids_of(encoder: PromptEncoder, text: str) -> list[int]:
    ids: list[int] = encoder.tokenizer.encode(text, add_special_tokens=False)
    return ids


def test_every_token_has_its_published_id(encoder: PromptEncoder) -> None:
    known = encoder.tokenizer.get_vocab()
    assert len(known) == len(encoder.tokenizer) == RANKS + len(CONTROL) == 151_669
    assert {token: known[token] for token in CONTROL} == IDS
    assert [IDS[t] for t in ("<|im_start|>", "<|vision_start|>", "<|video_pad|>", "</think>")] == [
        151_644, 151_652, 151_656, 151_668,
    ]  # fmt: skip
    assert encoder.tokenizer.eos_token_id == IDS["<|im_end|>"]
    assert set(encoder.tokenizer.all_special_tokens) == set(SPECIAL)


@settings(max_examples=300)
@given(TEXTS)
@example("\u0301e\u0301 ﬁ Å")
def test_it_encodes_as_tiktoken_does(
    encoder: PromptEncoder, reference: tiktoken.Encoding, text: str
) -> None:
    """Of what is normal form already: Hugging Face's tokenizer makes it so, tiktoken does not."""
    normal = unicodedata.normalize("NFC", text)
    expected = reference.encode(normal, allowed_special="all")
    assert ids_of(encoder, text) == expected
    assert encoder.tokenizer.decode(expected) == normal


@settings(max_examples=200)
@given(st.floats(0, 100_000), st.sampled_from([1, 2]))
def test_digits_of_times_are_tokens_by_themselves(
    encoder: PromptEncoder, seconds: float, places: int
) -> None:
    text = f"{seconds:.{places}f}"
    assert encoder.tokenizer.convert_ids_to_tokens(ids_of(encoder, text)) == list(text)


@settings(max_examples=200)
@given(st.integers(0, 36_000), st.integers(0, 36_000), st.sampled_from(sorted(TEMPLATES)))
def test_an_answer_in_its_templates_form_is_read_back(
    encoder: PromptEncoder, tenths: int, longer: int, name: str
) -> None:
    template = TEMPLATES[name]
    span = Span(tenths / 10, (tenths + longer + 1) / 10)
    ids = ids_of(encoder, template.format_answer(span))
    text = encoder.decode([*ids, IDS["<|im_end|>"]])
    assert text == template.format_answer(span)
    assert template.parse_span(text) == span


@pytest.fixture(scope="module")
def clip() -> VideoClip:
    """Six frames around the thirteenth second, each four tokens with its neighbour."""
    frames = np.random.default_rng(0).integers(0, 255, (6, 64, 64, 3), dtype=np.uint8)
    return VideoClip.of(frames, (25, 26, 27, 28, 29, 30), 2.0, 40, "pyav")


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_prompt_is_what_its_text_says_token_by_token(
    encoder: PromptEncoder, reference: tiktoken.Encoding, clip: VideoClip, name: str
) -> None:
    query = "a person opens a door, don't they?"
    asked = PromptEncoder(encoder.folder, TEMPLATES[name].text)
    (prompt,) = asked.encode(clip, [query])
    pairs = "".join(
        f"<{seconds} seconds><|vision_start|>{'<|video_pad|>' * 4}<|vision_end|>"
        for seconds in ("12.8", "13.8", "14.8")
    )
    question = TEMPLATES[name].text.format(query=query)
    # The marks around the whole video are the chat template's. transformers before 5.10 put the
    # frames in their place, since then (and vLLM beside it) it puts them between.
    video = f"<|vision_start|>{pairs}<|vision_end|>"
    text = f"<|im_start|>user\n{video}{question}<|im_end|>\n<|im_start|>assistant\n"
    assert list(prompt.token_ids) == reference.encode(text, allowed_special="all")
    each = len("<12.8>") + len([" seconds"]) + len(["<|vision_start|>", "<|vision_end|>"]) + 4
    chat = len(
        ["<|im_start|>", "user", "\n", "<|im_end|>", "\n", "<|im_start|>", "assistant", "\n"]
    )
    asks = len(reference.encode(question))
    assert len(prompt.token_ids) == 3 * each + 2 + chat + asks, "nothing else costs a token"


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_plan_counts_the_tokens_that_a_prompt_has(encoder: PromptEncoder, name: str) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (6, 64, 64, 3), dtype=np.uint8)
    clip = VideoClip.of(frames, tuple(range(6)), 2.0, 6, "pyav")
    query = "a person opens a door"  # its ends do not melt into the signs around it
    asked = PromptEncoder(encoder.folder, TEMPLATES[name].text)
    (prompt,) = asked.encode(clip, [query])
    config = load_config(
        ROOT / "configs" / "video_opd_qwen3vl.toml",
        ["video.max_video_tokens=12", "video.max_frame_tokens=4", f"prompt.template={name!r}"],
    )
    shape = shape_in(config.student.path)[0]
    count = counter(encoder.folder)
    annotated = Annotations((3.0,), (1,), count(query))
    planned = Lengths(config, shape, annotated, count)
    assert planned.longest.tokens + sum(planned.question) == len(prompt.token_ids)


def test_rows_that_are_no_token_and_placeholders_are_said_by_nobody(encoder: PromptEncoder) -> None:
    excluded = excluded_token_ids(encoder.tokenizer, ROWS, QWEN3_VL.placeholders)
    assert excluded == (*range(151_652, 151_657), *range(151_669, 151_936))
    config = type("Config", (), {"eos_token_id": [IDS["<|im_end|>"], IDS["<|endoftext|>"]]})
    ends = end_token_ids(config, encoder.tokenizer)
    assert ends == {151_643, 151_645} and not ends & set(excluded)
    shown = token_texts(encoder.folder, [151_667, 151_669, 151_935, *ids_of(encoder, " é")])
    assert shown == ["<think>", "<151669>", "<151935>", " é"]


WRITTEN = [token for token in CONTROL if token not in ("<think>", "</think>")]


@pytest.mark.parametrize("token", WRITTEN)
def test_a_sentence_with_a_control_token_is_not_asked(encoder: PromptEncoder, token: str) -> None:
    with pytest.raises(UnusableExample, match="a control token and no text"):
        CheckedPrompts(encoder).check_sentence(f"a dog {token} runs")


def test_a_thought_is_a_control_where_the_template_opens_one(encoder: PromptEncoder) -> None:
    """Instruct templates write none; what a user adds to a vocabulary, such as `<person1>`, is a
    word."""
    template = str(encoder.processor.chat_template)
    assert not {"<think>", "</think>"} & control_tokens(encoder.tokenizer, template)
    thinks = template + "{{ '<think>\n\n</think>' }}"
    assert {"<think>", "</think>"} <= control_tokens(encoder.tokenizer, thinks)


@settings(max_examples=300)
@given(TEXTS)
def test_a_sentence_that_may_be_asked_has_no_control_token_in_it(
    encoder: PromptEncoder, text: str
) -> None:
    known = control_tokens(encoder.tokenizer, str(encoder.processor.chat_template))
    if control_fault(text, known) is None:
        asked = TEMPLATES["timelens"].text.format(query=text)
        thoughts = {IDS["<think>"], IDS["</think>"]}
        assert all(i < RANKS or i in thoughts for i in ids_of(encoder, asked))
