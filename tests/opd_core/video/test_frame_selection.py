"""Which frames, and at what size: against the processors' own functions."""

from __future__ import annotations

import functools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from opd_core import torchvision_guard
from opd_core.config.sections import VideoSection
from opd_core.video.frame_selection import sample_frame_indices
from opd_core.video.frame_size import LEAST_SHARE, SizeRule


@functools.cache
def video_processor(name: str, **settings: Any) -> Any:
    torchvision_guard.install()
    import transformers

    return getattr(transformers, name)(**settings)


@settings(max_examples=500, deadline=None)
@given(
    total=st.integers(2, 200_000),
    file_fps=st.sampled_from([0.5, 8.0, 23.976, 25.0, 29.97, 30000 / 1001, 60.0])
    | st.floats(0.1, 240),
    fps=st.sampled_from([0.3, 1.0, 2.0, 4.0]),
    max_frames=st.sampled_from([2, 7, 24, 768]),
)
def test_frames_are_those_that_qwens_own_processor_samples(
    total: int, file_fps: float, fps: float, max_frames: int
) -> None:
    processor = video_processor("Qwen3VLVideoProcessor", max_frames=max_frames, fps=fps)
    metadata = SimpleNamespace(total_num_frames=total, fps=file_fps)
    chosen = VideoSection(fps=fps, max_frames=max_frames)
    expected = processor.sample_frames(metadata).tolist()
    assert sample_frame_indices(total, file_fps, chosen) == expected


@settings(max_examples=300, deadline=None)
@given(
    total=st.integers(2, 20_000),
    file_fps=st.sampled_from([23.976, 25.0, 29.97, 60.0]),
    seed=st.integers(0, 99),
)
def test_by_time_a_nearly_constant_rate_gives_nearly_the_same_frames(
    total: int, file_fps: float, seed: int
) -> None:
    jitter = np.random.default_rng(seed).uniform(-1e-4, 1e-4, total)
    seconds = np.arange(total) / file_fps + jitter
    expected = sample_frame_indices(total, file_fps, VideoSection())
    chosen = sample_frame_indices(total, file_fps, VideoSection(), seconds=seconds)
    assert len(chosen) == len(expected)
    assert np.abs(np.array(chosen) - expected).max() <= 1  # where two are equally near


@st.composite
def clocks(draw: st.DrawFn) -> np.ndarray:
    """Stamps of a file: frames of many lengths, some of ten seconds, some of none."""
    lengths = st.sampled_from([0.0, 0.017, 0.04, 0.04, 0.04, 0.3, 1.0, 10.0])
    steps = draw(st.lists(lengths, min_size=1, max_size=300))
    return np.concatenate([[0.0], np.cumsum([*steps[:-1], steps[-1] or 0.04])])


@settings(max_examples=300, deadline=None)
@given(seconds=clocks(), fps=st.sampled_from([1.0, 2.0]), max_frames=st.sampled_from([4, 24, 768]))
def test_frames_chosen_by_time_come_once_in_order_and_near_to_an_even_grid(
    seconds: np.ndarray, fps: float, max_frames: int
) -> None:
    total = len(seconds)
    rate = (total - 1) / seconds[-1]
    section = VideoSection(fps=fps, max_frames=max_frames)
    chosen = sample_frame_indices(total, rate, section, seconds=seconds)
    assert chosen == sorted(set(chosen))
    assert (seconds[chosen[0]], seconds[chosen[-1]]) == (seconds[0], seconds[-1])
    assert min(4, total) <= len(chosen) <= min(max_frames, total)
    count = min(max(int(total / rate * fps), 4), max_frames, total)
    shown = seconds[chosen]
    for moment in np.linspace(0, seconds[-1], count):
        # No other frame of the file is nearer to a moment of the grid than a chosen one.
        assert np.abs(shown - moment).min() <= np.abs(seconds - moment).min() + 1e-9


def test_a_picture_that_stays_is_one_frame_and_shares_its_patch_with_the_one_before() -> None:
    seconds = np.array([*np.arange(0, 2, 0.04), *np.arange(12, 14, 0.04)])
    rate = (len(seconds) - 1) / seconds[-1]
    chosen = sample_frame_indices(len(seconds), rate, VideoSection(), seconds=seconds)
    shown = [round(seconds[i], 2) for i in chosen]
    assert shown == [0.0, 0.52, 1.04, 1.56, 1.92, 1.96, 12.0, 12.4, 12.92, 13.44, 13.96]
    pairs = list(zip(shown[::2], shown[1::2], strict=False))
    assert max(b - a for a, b in pairs) < 1.2


SIZES = {
    "frames": st.integers(2, 768),
    "height": st.integers(2, 2200),
    "width": st.integers(2, 4000),
    "tokens": st.integers(1, 20_000),
    "capped": st.sampled_from([None, 16, 128, 768, 1024]),
    "shortest": st.sampled_from([1024, 3136, 4096, 128 * 28 * 28, 128 * 32 * 32]),
}


def resized(processor: Any, frames: int, height: int, width: int, **kwargs: Any) -> Any:
    """(height, width) to which the processor would resize; "refused" where it raises."""
    import torch
    from transformers.video_processing_utils import BaseVideoProcessor

    asked: list[Any] = []
    original = BaseVideoProcessor.resize
    try:
        BaseVideoProcessor.resize = lambda self, image, size, **_: asked.append(size)
        video = torch.empty(1, device="meta").expand(1, frames, 3, height, width)
        processor.resize(video, resample=3, **kwargs)
    except ValueError:
        return "refused"
    finally:
        BaseVideoProcessor.resize = original
    return asked[0].height, asked[0].width


def ours(rule: SizeRule, *numbers: Any) -> Any:
    try:
        return rule.target_size(*numbers)
    except ValueError:
        return "refused"


@settings(max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(**SIZES)
def test_a_size_is_that_of_qwen3_vls_own_processor(
    frames: int, height: int, width: int, tokens: int, capped: int | None, shortest: int
) -> None:
    from transformers.image_utils import SizeDict

    processor = video_processor("Qwen3VLVideoProcessor", max_video_tokens=capped or 768)
    size = SizeDict(shortest_edge=shortest, longest_edge=tokens * 2 * 32 * 32)
    expected = resized(
        processor, frames, height, width,
        size=size, factor=32, temporal_factor=2, cap_pixels_per_frame=capped is not None,
    )  # fmt: skip
    rule = SizeRule(shortest_edge=shortest)
    assume(capped is None or size.longest_edge // frames >= int(shortest * LEAST_SHARE))
    assert ours(rule, frames, height, width, tokens, capped) == expected


@settings(max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(**SIZES)
@pytest.mark.in_turn
def test_a_size_is_that_of_qwen2_5_vls_own_processor(
    frames: int, height: int, width: int, tokens: int, capped: int | None, shortest: int
) -> None:
    from transformers.image_utils import SizeDict

    # The processor takes nine tenths of its budget.
    tokens = 9 * tokens
    processor = video_processor("Qwen2VLVideoProcessor", max_video_tokens=10 * tokens // 9)
    assert int(processor.max_video_tokens * 28 * 28 * 0.9) == tokens * 28 * 28
    size = SizeDict(
        shortest_edge=shortest, longest_edge=(10**9 if capped is None else capped) * 28 * 28
    )
    expected = resized(
        processor, frames, height, width,
        size=size, factor=28, temporal_factor=2, cap_pixels_per_frame=True,
    )  # fmt: skip
    rule = SizeRule("qwen2_vl", patch_size=14, shortest_edge=shortest)
    assume(tokens * 2 * 28 * 28 // frames >= int(shortest * LEAST_SHARE))
    assert ours(rule, frames, height, width, tokens, capped) == expected


@pytest.mark.parametrize(
    ("name", "rule"), [("Qwen3VLVideoProcessor", "qwen3_vl"), ("Qwen2VLVideoProcessor", "qwen2_vl")]
)
def test_a_rule_is_read_from_a_processor(name: str, rule: Any) -> None:
    processor = video_processor(name)
    expected = SizeRule(
        rule, processor.patch_size, 2, 2, shortest_edge=processor.size["shortest_edge"]
    )
    assert SizeRule.of(processor, expected.name) == expected


def test_the_tiny_world_costs_twelve_tokens() -> None:
    assert SizeRule(shortest_edge=1024).target_size(24, 64, 64, 12, 768) == (32, 32)


def test_a_video_within_the_budget_is_only_rounded() -> None:
    assert SizeRule().target_size(24, 90, 150, 8192) == (96, 160)
    assert SizeRule().target_size(4, 10, 10, 8192) == (32, 32)


def test_a_short_video_does_not_spend_all_tokens_on_few_frames() -> None:
    whole, capped = (SizeRule().target_size(4, 1080, 1920, 8192, cap) for cap in (None, 768))
    assert whole == (1088, 1920) and capped == (640, 1152)
    assert capped[0] * capped[1] <= 768 * 32 * 32


@settings(max_examples=300, deadline=None)
@given(
    pairs=st.integers(1, 384),
    height=st.integers(64, 2200),
    width=st.integers(64, 4000),
    tokens=st.integers(1536, 9000),
    rule=st.sampled_from([SizeRule(), SizeRule("qwen2_vl", patch_size=14, shortest_edge=3136)]),
)
def test_an_even_number_of_usual_pictures_stays_within_the_budget(
    pairs: int, height: int, width: int, tokens: int, rule: SizeRule
) -> None:
    if not 1 / 3 < height / width < 3:
        return
    new_height, new_width = rule.target_size(2 * pairs, height, width, tokens, 768)
    factor = rule.patch_size * rule.merge_size
    assert new_height % factor == new_width % factor == 0 and new_height and new_width
    assert pairs * new_height * new_width // factor**2 <= tokens


@pytest.mark.parametrize("rule", [SizeRule(), SizeRule("qwen2_vl", patch_size=14)])
def test_the_least_of_a_frame_does_not_break_the_budget(rule: SizeRule) -> None:
    rule = replace(rule, shortest_edge=128 * (rule.patch_size * rule.merge_size) ** 2)
    height, width = rule.target_size(768, 720, 1280, 8192, 768)
    assert 384 * height * width // (rule.patch_size * rule.merge_size) ** 2 <= 8192
