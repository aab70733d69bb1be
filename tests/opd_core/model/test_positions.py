"""Positions of prompts: against counting by hand, and against vLLM's own code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from opd_core.model.positions import PositionRule
from opd_core.model.prefix_tree import grow, pack
from opd_core.model.tree_model import TreeModel
from opd_core.model.vision_input import VisionInput
from opd_core.prompts.encoder import shared_vision
from opd_core.tinyworld.world import World
from opd_core.types import VideoOPDError
from tests.opd_core.model.positions_by_hand import by_hand
from tests.opd_core.model.test_tree_model import Tokenizer, qwen

VIDEO, START, END = 90, 92, 93
QWEN3 = PositionRule(VIDEO, 2, None)


def qwen25(tokens_per_second: float = 2) -> PositionRule:
    return PositionRule(VIDEO, 2, tokens_per_second)


def vision(grid: tuple[int, int, int], seconds: float | None) -> VisionInput:
    return VisionInput(torch.zeros(0), grid, seconds)


def one_grid(before: int, grid: tuple[int, int, int], after: int) -> list[int]:
    pads = grid[0] * grid[1] * grid[2] // 4
    return [5] * (before - 1) + [START] + [VIDEO] * pads + [END] + [6] * (after - 1)


def frame_by_frame(before: int, grid: tuple[int, int, int], after: int) -> list[int]:
    frame = [7, 8, START, *[VIDEO] * (grid[1] * grid[2] // 4), END]
    return [5] * before + frame * grid[0] + [6] * after


def test_text_goes_on_after_the_last_second_of_the_video() -> None:
    """15 tokens before; 167 grids of two positions a second: t = 15 ... 347, then 348, 349, ..."""
    grid = (167, 8, 16)
    tokens = one_grid(15, grid, 4)
    found = qwen25().positions(tokens, vision(grid, 1.0))
    assert found.shape == (3, len(tokens) + 1)
    video = found[:, np.asarray([*tokens, 0]) == VIDEO]
    assert (video[0].min(), video[0].max()) == (15, 347)
    assert (video[1].max(), video[2].max()) == (15 + 3, 15 + 7)
    assert found[:, -5:].tolist() == [[348, 349, 350, 351, 352]] * 3
    assert qwen25().answer_position(tokens, vision(grid, 1.0)) == 352


GRIDS = [(1, 2, 2), (4, 4, 2), (3, 2, 40), (3, 40, 2), (12, 4, 4), (61, 6, 8)]
SECONDS = [0.02, 0.5, 2 / 3, 0.7, 1.0, 1.3333334, 2.0, 11.5]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("seconds", SECONDS)
@pytest.mark.parametrize("before_after", [(1, 1), (15, 9), (3, 120)])
def test_qwen25_is_counted_by_hand(
    grid: tuple[int, int, int], seconds: float, before_after: tuple[int, int]
) -> None:
    for tokens_per_second in (1, 2, 4, 25):
        tokens = one_grid(before_after[0], grid, before_after[1])
        found = qwen25(tokens_per_second).positions(tokens, vision(grid, seconds))
        expected = by_hand([t == VIDEO for t in tokens], grid, seconds, tokens_per_second)
        assert found.T.tolist() == [list(place) for place in expected]


@pytest.mark.parametrize("grid", GRIDS)
def test_qwen3_is_counted_by_hand(grid: tuple[int, int, int]) -> None:
    tokens = frame_by_frame(4, grid, 7)
    found = QWEN3.positions(tokens, vision(grid, None))
    expected = by_hand([t == VIDEO for t in tokens], grid, None, None)
    assert found.T.tolist() == [list(place) for place in expected]


@pytest.mark.parametrize("seconds", [None, *SECONDS])
@pytest.mark.parametrize("grid", GRIDS)
def test_positions_are_those_of_vllm(grid: tuple[int, int, int], seconds: float | None) -> None:
    pytest.importorskip("vllm")
    from opd_core import torchvision_guard

    torchvision_guard.install()
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration as Two
    from vllm.model_executor.models.qwen3_vl import Qwen3VLForConditionalGeneration as Three

    if seconds is None:
        tokens, rule, model = frame_by_frame(5, grid, 6), QWEN3, Three
    else:
        tokens, rule, model = one_grid(5, grid, 6), qwen25(), Two
    data = {"video_grid_thw": SimpleNamespace(data=torch.tensor(grid))}
    if seconds is not None:
        seconds = float(torch.tensor(seconds))  # as the processor gives it
        data["second_per_grid_ts"] = SimpleNamespace(data=torch.tensor(seconds))
    first = tokens.index(START if model is Three else VIDEO)
    length = len(tokens) - tokens[::-1].index(VIDEO) - first
    place = SimpleNamespace(offset=first, length=length, is_embed=None, get_num_embeds=lambda: 0)
    feature = SimpleNamespace(modality="video", data=data, mm_position=place)
    engine = SimpleNamespace(
        config=SimpleNamespace(
            video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END,
            vision_config=SimpleNamespace(spatial_merge_size=2, tokens_per_second=2),
        )
    )  # fmt: skip
    if model is Two:
        engine.iter_mm_grid_thw = lambda features: Two.iter_mm_grid_thw(engine, features)
    else:
        engine._get_mrope_input_positions = Three._get_mrope_input_positions
    theirs, delta = model.get_mrope_input_positions(engine, tokens, [feature])
    ours = rule.positions(tokens, vision(grid, seconds))
    assert ours[:, :-1].tolist() == theirs.tolist()
    assert ours[:, -1].tolist() == [len(tokens) + delta] * 3


@pytest.mark.parametrize("kind", ["qwen3_vl", "qwen2_5_vl"])
def test_two_videos_of_one_grid_keep_their_own_positions(kind: str) -> None:
    """Equal tokens, equal grid, unlike seconds: in one model, in any order, in one pack."""
    model = TreeModel(qwen(kind), Tokenizer())
    grid = (3, 4, 4)
    tokens = (one_grid if kind == "qwen2_5_vl" else frame_by_frame)(3, grid, 4)
    expected = {}
    for seconds in (1.0, 4.0, 1.5):
        places = by_hand(
            [t == VIDEO for t in tokens], grid, seconds, model.positions.tokens_per_second
        )
        expected[seconds] = np.asarray(places).T
    for order in ((1.0, 4.0, 1.5, 1.0), (4.0, 1.0)):
        trees = [
            grow([[*tokens, 6], [*tokens, 7, 7]], [[], []], vision(grid, seconds))
            for seconds in order
        ]
        found = pack(trees).positions(model.prompt_positions)
        size = trees[0].tokens
        for n, seconds in enumerate(order):
            own = found[:, n * size : n * size + len(tokens)]
            assert own.tolist() == expected[seconds][:, :-1].tolist(), (order, n)


def test_a_key_holds_all_that_positions_depend_on() -> None:
    rule = qwen25()
    grid, tokens = (4, 4, 4), tuple(one_grid(3, (4, 4, 4), 4))
    first = rule.key(tokens, vision(grid, 1.0))
    assert rule.key(tokens, vision(grid, 1.0)) == first
    for other in ((tokens, vision(grid, 1.0001)), (tokens, vision((2, 8, 4), 1.0)),
                  ((*tokens, 1), vision(grid, 1.0))):  # fmt: skip
        assert rule.key(*other) != first


@pytest.mark.parametrize("change", [lambda t: [*t, VIDEO], lambda t: list(t[:-6]),
                                    lambda t: [*t[:6], 5, *t[6:]]])  # fmt: skip
@pytest.mark.parametrize("kind", ["qwen3_vl", "qwen2_5_vl"])
def test_video_tokens_that_are_not_the_grid_are_refused(
    kind: str, change: Callable[[list[int]], list[int]]
) -> None:
    grid = (3, 4, 4)
    rule, tokens = QWEN3, frame_by_frame(2, grid, 1)
    if kind == "qwen2_5_vl":
        rule, tokens = qwen25(), one_grid(3, grid, 1)
    rule.positions(tokens, vision(grid, 1.0))
    with pytest.raises(VideoOPDError, match=r"video tokens where its grid \(3, 4, 4\) needs 12"):
        rule.positions(change(tokens), vision(grid, 1.0))


def test_qwen25_without_seconds_is_refused() -> None:
    grid = (3, 4, 4)
    with pytest.raises(VideoOPDError, match="second_per_grid_ts"):
        qwen25().positions(one_grid(3, grid, 1), vision(grid, None))


def test_prompts_of_two_clips_share_no_prefix() -> None:
    prompt: Any = SimpleNamespace(vision=vision((3, 4, 4), 1.0))
    assert shared_vision([prompt, prompt]) is prompt.vision
    other: Any = SimpleNamespace(vision=replace(prompt.vision, second_per_grid=2.0))
    with pytest.raises(ValueError, match="several clips"):
        shared_vision([prompt, other])


@pytest.mark.parametrize("fps", [1.0, 1.7, 2.0, 3.0])
def test_seconds_per_grid_are_the_processors(fps: float, tmp_path: Path, tiny_world: World) -> None:
    """temporal patch / sampled fps: of the frames seen in the video's whole duration."""
    from opd_core.prompts.batches import ExampleEncoder
    from tests.opd_core.engines.vllm_fixtures import make_config, read_examples

    for kind in ("qwen2_5_vl", "qwen3_vl"):
        (tmp_path / kind).mkdir()
        config = make_config(tmp_path / kind, tiny_world, {"video.fps": fps}, kind)
        encoder = ExampleEncoder(config, config.student.path)
        (batch,) = encoder.encode_batches([read_examples(config, 1)], "test", 0)
        item = batch.videos[0][0]
        seconds = item.prompt.vision.second_per_grid
        if kind == "qwen3_vl":
            assert seconds is None, "its times are words of the prompt"
            continue
        assert seconds == pytest.approx(
            2 * item.clip.duration / len(item.clip.timestamps), rel=1e-3
        )
        assert seconds == float(torch.tensor(seconds)), "float32, as vLLM has it"
