"""Configs are strict: every mistake is one sentence that names the key and the fix."""

import re
from pathlib import Path

import pytest

from opd_core.config.load import load_config
from opd_core.types import VideoOPDError

CONFIGS = Path(__file__).parents[3] / "configs"
TINY = CONFIGS / "tiny.toml"

MISTAKES = [
    ("update.learning_rat=1", "unknown key 'update.learning_rat'; did you mean 'learning_rate'?"),
    ("updates.epochs=2", "unknown key 'updates'; did you mean 'update'?"),
    ("update.lora.alpha=4", "the key 'update.lora.rank' is missing"),
    ("rollout.top_p=0.9", "set rollout.top_p = 1.0, or rollout.allow_off_policy_sampling = true"),
    ("rollout.temperature=0.7", "temperature = 0.7 samples another distribution"),
    ("rollout.top_k=20", "top_k = 20 samples another distribution"),
    ("update.max_grad_norm=-1", "update.max_grad_norm = -1 is not valid"),
    ("update.objective='sff'", "did you mean 'sft'?"),
    ("score.teacher_topk=0", "needs the teacher's top-k; set score.teacher_topk = 32"),
    ("learning_rate=3", "is not section.key=value"),
    ("update.learning_rate", "is not section.key=value"),
    ("run.path.x=3", "'path' is no section"),
]


@pytest.mark.parametrize(("override", "message"), MISTAKES)
def test_a_mistake_is_named_with_its_fix(override: str, message: str) -> None:
    with pytest.raises(VideoOPDError) as caught:
        load_config(TINY, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_off_policy_sampling_can_be_allowed() -> None:
    overrides = ["rollout.top_p=0.9", "rollout.allow_off_policy_sampling=true"]
    assert load_config(TINY, overrides).rollout.top_p == 0.9


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(VideoOPDError, match="there is no config at .*nowhere.toml"):
        load_config(tmp_path / "nowhere.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[run\n")
    with pytest.raises(VideoOPDError, match="broken.toml cannot be read as TOML"):
        load_config(broken)
    with pytest.raises(VideoOPDError, match="cannot be read"):
        load_config(tmp_path)


def test_paths_are_relative_to_the_file_they_stand_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(TINY)
    assert config.student.path == CONFIGS / "tiny" / "loose-student"
    assert config.run.path == CONFIGS.parent / "runs" / "tiny"


def test_the_hash_is_of_the_content_not_of_the_place(tmp_path: Path) -> None:
    one = load_config(TINY)
    assert one.hash == load_config(TINY, [f"run.path='{tmp_path}'"]).hash
    assert one.hash != load_config(TINY, ["update.learning_rate=0.5"]).hash
    assert one.hash == load_config(TINY, ["storage.flush_seconds=0"]).hash, "changes no number"


def test_frames_are_kept_beside_the_run_unless_told_otherwise(tmp_path: Path) -> None:
    config = load_config(TINY)
    assert config.frames_path == config.run.path.parent / "videoopd-frames"
    assert load_config(TINY, ["frames.enabled=false"]).frames_path is None
    there = load_config(TINY, [f"frames.path='{tmp_path}'", "frames.max_gib=1.5"])
    assert there.frames_path == tmp_path
    assert config.hash == there.hash == load_config(TINY, ["frames.enabled=false"]).hash
    assert config.hash != load_config(TINY, ["frames.codec='jpeg'"]).hash, "it changes the pixels"


def test_the_default_is_the_papers_method() -> None:
    config = load_config(CONFIGS / "video_opd_qwen3vl.toml")
    assert config.update.objective == "policy_gradient"
    assert config.focus.curriculum == "tvdf"
    assert config.rollout.temperature == 1.0
    assert config.update.learning_rate == 1e-6
    assert config.video.max_video_tokens == 8192 and config.video.max_frame_tokens == 768


def test_a_later_setting_hashes_only_where_it_is_not_the_default() -> None:
    """Of configs that never name it, and of those that name its default; as they were before."""
    plain = load_config(TINY)
    assert not {"weights", "optimizer", "offload"} & plain.what_counts()["update"].keys()
    assert load_config(TINY, ["update.offload=false"]).hash == plain.hash
    given = load_config(TINY, ["update.optimizer='adamw_8bit'"])
    assert given.what_counts()["update"]["optimizer"] == "adamw_8bit"
    assert given.hash != plain.hash


@pytest.mark.parametrize(
    "overrides, problem",
    [
        (["update.weights='bfloat16'"], "set student.dtype = 'bfloat16'"),
        (
            ["update.weights='bfloat16'", "student.dtype='bfloat16'",
             "update.stochastic_rounding=false"],
            "at a learning rate of 1e-6 all of them; set it to true, or update.weights = 'float32'",
        ),
        (
            ["update.weights='bfloat16'", "student.dtype='bfloat16'", "update.offload=true"],
            "remove one of the two",
        ),
        (
            ["student.dtype='float16'", "update.offload=true"],
            "float16 has no numbers as small as they are; set student.dtype = 'bfloat16'",
        ),
    ],
)  # fmt: skip
def test_weights_that_could_not_be_trained_are_refused(overrides: list[str], problem: str) -> None:
    with pytest.raises(VideoOPDError, match=re.escape(problem)):
        load_config(TINY, overrides)
