"""Videos that are not there: one sentence for all of them, a round's patience for one of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows import stages
from flows.stage.prepare import opened
from opd_core.prompts.batches import ExampleEncoder
from opd_core.types import VideoOPDError
from storage.runs.run import Run
from tests.flows.annotation_files import annotate, drawn, reasons, row, write_videos
from tests.flows.conftest import WriteConfig
from tests.flows.kill_points import run_without_server

NAMES = ("a.mp4", "b.mp4", "c.mp4", "d.mp4")
TRAIN = [row(name, (f"one of {name}", 0, 2), (f"two of {name}", 1, 4)) for name in NAMES]


def written(write_config: WriteConfig, folder: Path) -> Path:
    """A config of four videos of two sentences; evaluated on three of them."""
    settings = {
        "data.videos": write_videos(folder / "videos", *NAMES),
        "data.train": annotate(folder / "train.jsonl", *TRAIN),
        "data.eval": annotate(
            folder / "eval.jsonl", *(row(name, (f"end of {name}", 2, 5)) for name in NAMES[:3])
        ),
        "focus.curriculum": "uniform",
        "rollout.examples_per_round": 20,
        "rollout.prompts_per_batch": 2,
    }
    return write_config(folder, settings)


@pytest.fixture
def config(write_config: WriteConfig, tmp_path: Path) -> Path:
    return written(write_config, tmp_path)


@pytest.fixture(scope="module")
def first_round(write_config: WriteConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run after one round, with every video there."""
    folder = tmp_path_factory.mktemp("first")
    run_without_server(str(written(write_config, folder)))
    return folder / "run"


@pytest.fixture
def after_a_round(config: Path, first_round: Path, tmp_path: Path) -> Path:
    """The config, and beside it a run of one round."""
    shutil.copytree(first_round, tmp_path / "run")
    return config


def rows(folder: Path) -> dict[str, int]:
    run = Run.open(folder / "run")
    tables = ("draws", "quarantine", "rollouts", "evaluations", "teacher_scores", "updates")
    return {name: run.tables.scan(name).collect().height for name in tables}


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "one file"])
@pytest.mark.in_turn(always=["nothing"])
def test_a_folder_that_is_away_between_rounds_is_one_sentence_and_no_row(
    after_a_round: Path, tmp_path: Path, left: str
) -> None:
    config = after_a_round
    before = rows(tmp_path)
    (tmp_path / "videos").rename(tmp_path / "away")
    if left != "nothing":
        (tmp_path / "videos").mkdir()
    if left == "one file":
        os.link(tmp_path / "away" / "a.mp4", tmp_path / "videos" / "a.mp4")
    with pytest.raises(VideoOPDError) as error:
        run_without_server(str(config))
    said = str(error.value)
    assert str(tmp_path / "videos") in said and "no video was given up" in said
    assert ("is not there" in said) == (left == "nothing")
    assert rows(tmp_path) == before
    if left != "nothing":
        for file in (tmp_path / "videos").iterdir():
            file.unlink()
        (tmp_path / "videos").rmdir()
    (tmp_path / "away").rename(tmp_path / "videos")
    run_without_server(str(config))
    assert Run.open(tmp_path / "run").current_policy().version == 2
    assert drawn(tmp_path / "run", 2) == drawn(tmp_path / "run", 1)


def test_a_missing_file_is_left_out_of_its_round_and_tried_again_in_the_next(
    config: Path, tmp_path: Path
) -> None:
    (tmp_path / "videos" / "b.mp4").rename(tmp_path / "b.mp4")
    summary = run_without_server(str(config))
    found = reasons(tmp_path / "run")
    assert set(found) == {"one of b.mp4", "two of b.mp4", "end of b.mp4"}
    assert {kind for kind, _ in found.values()} == {"no file"}
    assert (summary.rounds[-1].eval_examples, summary.rounds[-1].eval_asked) == (2, 3)
    (tmp_path / "b.mp4").rename(tmp_path / "videos" / "b.mp4")
    summary = run_without_server(str(config))
    run = Run.open(tmp_path / "run")
    assert "one of b.mp4" in drawn(tmp_path / "run", 2)
    assert run.rollouts().collect().group_by("policy_version").len().sort(
        "policy_version"
    ).rows() == [(0, 2 * 6), (1, 2 * 8)]
    assert summary.rounds[-1].eval_examples == 3
    assert any("policy 1 answered 2" in note for note in summary.rounds[-1].notes)
    with opened(str(config)) as work:  # asked again, now that it is there
        assert stages.evaluate.fn(work, work.policy(1)).rows == 1


@pytest.mark.parametrize("stage", ["rollout", "score", "evaluate"])
@pytest.mark.in_turn(always=["rollout"])
def test_a_folder_that_goes_away_in_the_middle_of_a_stage(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """What was finished is kept, the rest is one sentence, and the round goes on afterwards."""
    whole = ExampleEncoder._clip
    videos, away = tmp_path / "videos", tmp_path / "away"

    def clip(self: ExampleEncoder, video_path: str) -> Any:
        found = whole(self, video_path)
        if videos.is_dir():
            videos.rename(away)
        return found

    with opened(str(config)) as work:
        order = ("evaluate", "draw", "rollout", "score", "focus", "update")
        for name in order:
            if name == stage:
                with monkeypatch.context() as patch:
                    patch.setattr(ExampleEncoder, "_clip", clip)
                    with pytest.raises(VideoOPDError, match=r"videos .* is not there"):
                        getattr(stages, name).fn(work, work.policy())
                assert reasons(tmp_path / "run") == {}
                if name == "rollout":
                    assert rows(tmp_path)["rollouts"] == 2 * 2, "the batch before is kept"
                away.rename(videos)
            getattr(stages, name).fn(work, work.policy())
    run = Run.open(tmp_path / "run")
    assert run.current_policy().version == 1
    assert run.rollouts().collect().height == run.teacher_scores().collect().height == 2 * 8
    assert run.evaluations().collect().height == 3


def test_a_disk_that_lists_files_and_gives_none(
    after_a_round: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are there by name, and reading any of them is an error of the system."""
    config = after_a_round
    before = rows(tmp_path)
    whole = Path.open

    def refusing(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.suffix == ".mp4":
            raise OSError(5, "Input/output error")
        return whole(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refusing)
        with pytest.raises(VideoOPDError, match="videos that are wanted .* cannot be read"):
            run_without_server(str(config))
    after = rows(tmp_path)
    assert after.pop("draws") == before.pop("draws") + 8
    lost = after.pop("quarantine")
    assert lost <= 2 * 2 and after == {name: before[name] for name in after}
    assert {kind for kind, _ in reasons(tmp_path / "run").values()} == {"no file"}
    run_without_server(str(config))
    assert Run.open(tmp_path / "run").current_policy().version == 2


def test_a_decoder_that_is_lost_twice_is_given_up(after_a_round: Path, tmp_path: Path) -> None:
    from opd_core.types import QuarantinedItem

    run = Run.open(tmp_path / "run")
    (lost, *_) = run.draws().filter(policy_version=0).collect()["example_id"]
    from flows.stage.given_up import given_up

    with opened(str(after_a_round)) as work:
        for version, expected in ((7, set()), (8, {lost})):
            item = QuarantinedItem(lost, "rollout", "a.mp4", "hung", version, "decoder lost")
            work.run.append("quarantine", [item], stage="rollout", policy_version=version)
            assert given_up(work, work.policy()) == expected
