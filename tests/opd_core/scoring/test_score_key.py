"""A content hash moves with everything that a score depends on, and with nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from opd_core.config.load import load_config
from opd_core.scoring.score_key import content_hash, quantised_in
from opd_core.scoring.trees import describe_scorer
from opd_core.types import Rollout, VideoOPDError
from tests.tiny_config import ROOT

ROLLOUT = Rollout(
    answered_by="student",
    rollout_id="v0-e-0", policy_version=0, policy_hash="p", example_id="e", sample_index=0, seed=1,
    prompt_token_ids=(1, 2, 3), completion_token_ids=(4, 5), sampling_logprobs=(-0.5, -0.25),
    finish_reason="stop", text="?", predicted_span=None, student_iou=0.0, frame_indices=(0, 2),
    frame_timestamps=(0.0, 0.5), grid_thw=(1, 4, 4), pixel_hash="x", processor_hash="y",
    engine="hf", engine_version="1", engine_mismatch=None, seconds=0.1,
)  # fmt: skip


def test_it_does_not_depend_on_whose_the_answer_is() -> None:
    other = replace(
        ROLLOUT, rollout_id="v9-f-1", policy_version=9, policy_hash="q", example_id="f", seed=7,
        sampling_logprobs=(-1.0, -1.0), text="!", student_iou=1.0, frame_indices=(0, 1),
        processor_hash="of the student", engine="vllm", seconds=9.0,
    )  # fmt: skip
    assert content_hash("s", "t", other) == content_hash("s", "t", ROLLOUT)


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_token_ids": (1, 2)},
        {"prompt_token_ids": (1, 2, 3, 4), "completion_token_ids": (5,)},
        {"completion_token_ids": (4, 6)},
        {"frame_timestamps": (0.0, 1.0)},
        {"grid_thw": (4, 4, 1)},
        {"pixel_hash": "y"},
    ],
    ids=str,
)
def test_it_depends_on_what_is_scored(changes: dict[str, Any]) -> None:
    assert content_hash("s", "t", replace(ROLLOUT, **changes)) != content_hash("s", "t", ROLLOUT)


def test_it_depends_on_weights_and_scorer() -> None:
    hashes = {content_hash(*which, ROLLOUT) for which in (("s", "t"), ("s", "u"), ("st", ""))}
    assert len(hashes) == 3


@pytest.mark.parametrize(
    "setting",
    ["score.teacher_topk=8", "score.teacher_entropy=true", "score.hidden_states=true",
     "teacher.dtype=bfloat16", "teacher.quantise=fp8", "teacher.quantise=int4"],
)  # fmt: skip
def test_the_scorer_says_what_is_kept_and_how_it_was_computed(setting: str) -> None:
    path = ROOT / "configs" / "tiny.toml"
    before = describe_scorer(load_config(path), "p")
    assert describe_scorer(load_config(path, [setting]), "p") != before
    assert describe_scorer(load_config(path), "another") != before
    assert describe_scorer(load_config(path, ["run.seed=5"]), "p") == before


def test_the_scorer_says_the_precision_that_is_served() -> None:
    path = ROOT / "configs" / "tiny.toml"

    def scorer(*settings: str) -> str:
        return describe_scorer(load_config(path, ["teacher.engine=vllm", *settings]), "p")

    served = scorer("vllm.dtype=float16")
    assert "; float16; " in served and served != scorer()
    assert scorer("vllm.dtype=float32") == scorer("teacher.dtype=float32")
    assert describe_scorer(load_config(path, ["vllm.dtype=float16"]), "p") == describe_scorer(
        load_config(path), "p"
    ), "hf has no precision of its own"


def test_a_scorer_tells_how_its_teacher_was_quantised() -> None:
    path = ROOT / "configs" / "tiny.toml"
    told = {
        how: describe_scorer(load_config(path, [f"teacher.quantise={how}"]), "p")
        for how in ("none", "fp8", "int4")
    }
    assert {how: quantised_in(scorer) for how, scorer in told.items()} == {n: n for n in told}
    assert (
        told["none"] == describe_scorer(load_config(path), "p") and " weights" not in told["none"]
    )
    assert "e4m3 a row; " in told["fp8"], "on a CPU activations are not rounded"


@pytest.mark.parametrize("name", ["teacher_entropy", "hidden_states"])
def test_vllm_gives_no_hidden_states(name: str) -> None:
    path = ROOT / "configs" / "tiny.toml"
    with pytest.raises(VideoOPDError, match=rf"score\.{name} needs the teacher's own forward"):
        load_config(path, [f"score.{name}=true", "teacher.engine='vllm'"])


def test_the_cache_is_relative_to_the_config() -> None:
    path = ROOT / "configs" / "tiny.toml"
    loaded = load_config(path, ["score.cache='../runs/other'"])
    assert loaded.score.cache == Path(ROOT / "runs" / "other").resolve()
