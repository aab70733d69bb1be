"""Several teachers in a config: whose each example is, and that one teacher is what it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from opd_core.config.load import Config, load_config
from opd_core.config.sections import TakesSection
from opd_core.types import VideoOPDError
from tests.opd_core.config.several_teachers import SEVERAL
from tests.tiny_config import ROOT


def several(tmp_path: Path, text: str = SEVERAL, overrides: Sequence[str] = ()) -> Config:
    file = tmp_path / "several.toml"
    file.write_text(text)
    return load_config(file, overrides)


def test_a_config_with_one_teacher_is_hashed_as_before() -> None:
    config = load_config(ROOT / "configs" / "tiny.toml")
    written = json.loads(config.to_json())  # what is hashed, of which a part is left out
    assert not {"teachers", "cluster", "vllm_server"} & set(written)
    assert set(written["teacher"]) == {"path", "dtype", "engine", "predictions", "cache"}
    assert config.of_each_teacher() == (config,)


def test_each_alone_is_a_config_with_one_teacher(tmp_path: Path) -> None:
    config = several(tmp_path)
    large, small = config.of_each_teacher()
    assert (large.teacher.path.name, small.teacher.path.name) == ("x-32b", "x-8b")
    assert (large.teacher.predictions, small.teacher.predictions) == (4, 2)
    assert not large.teachers and "teacher" in json.loads(large.to_json())


def test_it_comes_back_from_its_json_and_hash(tmp_path: Path) -> None:
    config = several(tmp_path)
    assert "teacher" not in json.loads(config.to_json())
    again = Config.model_validate_json(config.to_json())
    assert again == config and again.hash == config.hash
    assert config.hash != several(tmp_path, overrides=["teachers.small.predictions=4"]).hash


@pytest.mark.parametrize(
    ("source", "video", "takes", "matches"),
    [
        ("charades", "a.mp4", {"source": "charades"}, True),
        ("charades", "a.mp4", {"source": ["x", "char*"]}, True),
        ("charades-sta", "a.mp4", {"source": "charades"}, False),
        ("charades", "b/a.mp4", {"video_path": "b/*"}, True),
        ("charades", "b/a.mp4", {"source": "x", "video_path": "b/*"}, False),
        ("a[1].x", "a.mp4", {"source": "a[1].x"}, True),
        ("a1.x", "a.mp4", {"source": "a[1].x"}, False),
        ("anything", "a.mp4", {}, True),
    ],
)
def test_whose_an_example_is(
    source: str, video: str, takes: dict[str, object], matches: bool
) -> None:
    section = TakesSection.model_validate(takes)
    assert section.match({"source": source, "video_path": video}) == matches


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["teacher.path=x"], r"\[teacher\] or \[\[teachers\]\], not both"),
        (["teachers.small.name=large"], "two of .* have the name 'large'"),
        (["teachers.small.path=other/x-32b"], "two of .* have the model 'x-32b'"),
        (["teachers.small.paht=x"], "unknown key 'teachers.1.paht'; did you mean 'path'"),
        (["teachers.small.takes={ sauce = 'x' }"], "did you mean 'source'"),
        (["teachers.middle.path=x"], "'middle' is no section"),
        (["teachers.small=3"], "names no one of a list"),
        (["teachers.small.quantise=int4"], "4 bits a weight"),
        (["evaluate.engine=vllm_server"], "evaluate.engine = 'vllm_server' is for a teacher"),
        (["rollout.engine=vllm_server"], "rollout.engine = 'vllm_server' is for a teacher"),
        (
            ["teachers.small.engine=vllm_server", "teachers.large.engine=vllm_server"],
            "teachers.large and teachers.small are both behind one address",
        ),
        (["teachers.small.engine=vllm", "score.teacher_entropy=true"], "vllm does not give"),
    ],
)
def test_what_is_wrong_with_one_is_a_sentence(
    tmp_path: Path, change: list[str], message: str
) -> None:
    with pytest.raises(VideoOPDError, match=message):
        several(tmp_path, overrides=change)


def test_rows_name_the_one_that_is_meant(tmp_path: Path) -> None:
    config = several(tmp_path)
    assert config.with_teacher("x-8b").teacher.path.name == "x-8b"
    with pytest.raises(VideoOPDError, match="none of .* is x-72b"):
        config.with_teacher("x-72b")
    alone = config.of_each_teacher()[0]
    assert alone.with_teacher("its folder was renamed since") == alone
