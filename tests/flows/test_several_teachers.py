"""Rounds with several teachers: each example is judged by its own, and an audit proves it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows import stages
from flows.audit.walk import Depth, audit
from flows.commands.run_state import status_of
from flows.rescore import rescore_run
from flows.stage.prepare import opened
from flows.stage.rows import refuse_other_scores
from opd_core.config.load import load_config
from opd_core.plan.plan import Machine
from opd_core.plan.plan_of_config import plan_of
from opd_core.tinyworld.world import World
from opd_core.types import VideoOPDError, split_hashes
from storage.asking.diff import diff
from storage.runs.run import Run
from tests.flows.kill_points import run_without_server
from tests.storage.finished_run import rewrite
from tests.tiny_config import ROOT, as_toml, tiny_settings

FOLDERS = {"short": "teacher", "long": "long-teacher"}
"""Name of a teacher, and source of its examples -> its folder."""
SETTINGS = {"dtype": "float32", "predictions": 2}


@pytest.fixture(scope="module")
def world(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The tiny world, every other video of which is of another source."""
    folder = tmp_path_factory.mktemp("sources")
    lines = [json.loads(line) for line in tiny_world.train.read_text().splitlines()]
    for number, line in enumerate(lines):
        line["source"] = list(FOLDERS)[number % 2]
    train = folder / "train.jsonl"
    train.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return replace(tiny_world, train=train)


def teacher(name: str, **more: object) -> dict[str, object]:
    path = str(ROOT / "configs" / "tiny" / FOLDERS[name])
    return {"name": name, "path": path, **SETTINGS, **more}


BOTH = [teacher("short", takes={"source": ["short"]}), teacher("long")]


def write(file: Path, world: World, teachers: list[dict[str, object]], **more: Any) -> str:
    settings = tiny_settings(file.with_suffix(""), world) | {"teachers": teachers} | more
    for key in ("teacher.path", "teacher.dtype", "teacher.predictions"):
        del settings[key]
    file.write_text(as_toml(settings))
    return str(file)


@pytest.fixture(scope="module")
def finished(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a run of a round with both."""
    file = tmp_path_factory.mktemp("several") / "both.toml"
    kept = {"score.hidden_states": True, "update.teacher_distribution": "hidden_states"}
    run_without_server(write(file, world, BOTH, **kept), 1)
    return file


def sources(run: Run) -> pl.DataFrame:
    return run.examples().select("example_id", "source").collect()


def broken(run: Run, depth: Depth) -> dict[str, str]:
    return {v.link: v.broken for v in audit(run, depth) if v.broken}


def test_each_example_is_judged_by_its_own_teacher(finished: Path) -> None:
    run = Run.open(finished.with_suffix(""))
    (joined,) = set(run.updates().collect()["teacher_hash"])
    own = dict(zip(FOLDERS, split_hashes(joined), strict=True))
    assert len(set(own.values())) == 2 and run.teacher_hash == joined
    expected = pl.col("source").replace_strict(own)
    for rows in (
        run.teacher_predictions().collect(),
        run.teacher_scores()
        .join(run.rollouts().select("rollout_id", "example_id"), on="rollout_id")
        .collect(),
        run.trajectories().drop("source").filter(pl.col("selected").is_not_null()).collect(),
    ):
        judged = rows.join(sources(run), on="example_id")
        assert judged["source"].n_unique() == 2
        assert judged.filter(pl.col("teacher_hash") != expected).is_empty()
        assert judged["teacher_hash"].null_count() == 0
    names = dict(run.teacher_scores().select("teacher_hash", "teacher_id").collect().iter_rows())
    assert {digest: names[digest] for digest in own.values()} == {
        own[name]: folder for name, folder in FOLDERS.items()
    }


def test_a_trajectory_has_what_its_own_teacher_said(finished: Path) -> None:
    run = Run.open(finished.with_suffix(""))
    rows = run.trajectories().collect()
    assert rows["teacher_iou"].null_count() == 0 and set(rows["teacher_answers"]) == {2}
    taken = rows.filter("selected")
    assert taken["teacher_logprobs"].null_count() == 0
    tokens = run.tokens().filter("selected").collect()
    assert tokens["teacher_logprob"].null_count() == 0


def test_the_audit_proves_it_and_goes_as_deep(finished: Path) -> None:
    run = Run.open(finished.with_suffix(""))
    assert broken(run, Depth(deep=1.0)) == {}


def test_the_numbers_are_those_of_each_teacher_alone(
    finished: Path, world: World, tmp_path: Path
) -> None:
    both = Run.open(finished.with_suffix(""))
    kept = {"focus.curriculum": "uniform", "focus.top_k": 64, "score.hidden_states": True}
    for name in FOLDERS:
        config = write(tmp_path / f"{name}.toml", world, [teacher(name)], **kept)
        run_without_server(config, 1)
        alone = Run.open(tmp_path / name)
        scores = both.teacher_scores().select("rollout_id", "teacher_hash", "teacher_logprobs")
        compared = (
            scores.filter(pl.col("rollout_id").str.starts_with("v0-"))
            .join(
                alone.teacher_scores().select(
                    "rollout_id", "teacher_hash", alone="teacher_logprobs"
                ),
                on=["rollout_id", "teacher_hash"],
            )
            .explode("teacher_logprobs", "alone")
            .collect()
        )
        assert compared.height > 20
        assert (compared["teacher_logprobs"] - compared["alone"]).abs().max() < 1e-4  # type: ignore[operator]


def test_a_stage_that_has_nothing_to_do_adds_nothing(finished: Path) -> None:
    with opened(str(finished)) as work:
        policy = work.policy(0)
        for stage in (stages.validate, stages.score):
            assert stage.fn(work, policy).rows == 0
        assert work.teachers.names == "teacher, long-teacher"


def test_rescore_takes_the_head_of_each(finished: Path) -> None:
    run = Run.open(finished.with_suffix(""))
    rescore_run(run, 1)
    rows = run.divergences().collect()
    assert rows["teacher_hash"].n_unique() == 2
    assert rows["max_teacher_mismatch"].max() < 1e-4  # type: ignore[operator]
    assert broken(run, Depth(videos=0.0)) == {}


def test_status_diff_and_plan_name_both(finished: Path) -> None:
    run = Run.open(finished.with_suffix(""))
    assert all(f"{name} (" in status_of(run).teacher for name in FOLDERS)
    assert {"teacher weights", "config teachers.long.path"} <= {*diff(run, run).same}
    planned = plan_of(load_config(finished), Machine(None, 64e9))
    assert [m.path.rsplit("/", 1)[1] for m in (planned.teacher, *planned.other_teachers)] == [
        *FOLDERS.values()
    ]
    small = plan_of(load_config(finished, ["teachers.long.dtype=bfloat16"]), Machine(None, 1.0))
    assert not small.fits


def test_an_audit_finds_a_score_of_the_other_teacher(finished: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished.with_suffix(""), tmp_path / "run"))
    run = Run.open(copy)
    first, second = split_hashes(run.teacher_hash)

    def swapped(rows: list[dict[str, Any]]) -> None:
        rows[0]["teacher_hash"] = second if rows[0]["teacher_hash"] == first else first

    rewrite(copy, "teacher_scores", swapped)
    found = broken(Run.open(copy), Depth(videos=0.0))
    assert "scores are the update's teacher's" in found


def test_answers_of_the_teachers_are_each_ones_own(world: World, tmp_path: Path) -> None:
    more = {"rollout.source": "teacher", "update.objective": "sft", "focus.curriculum": "uniform"}
    config = write(tmp_path / "sft.toml", world, BOTH, **more)
    run_without_server(config, 1)
    run = Run.open(tmp_path / "sft")
    own = dict(zip(FOLDERS, split_hashes(run.teacher_hash), strict=True))
    rows = run.rollouts().collect().join(sources(run), on="example_id")
    assert rows["source"].n_unique() == 2
    assert rows.filter(pl.col("policy_hash") != pl.col("source").replace_strict(own)).is_empty()
    assert broken(run, Depth(deep=1.0)) == {}


def test_scores_of_a_teacher_that_no_longer_takes_the_example_are_refused(
    finished: Path, world: World
) -> None:
    swapped = [teacher("short", takes={"source": ["long"]}), teacher("long")]
    content = {"score.hidden_states": True, "update.teacher_distribution": "hidden_states"}
    config = write(finished.with_name("swapped.toml"), world, swapped, **content,
                   **{"run.path": str(finished.with_suffix(""))})  # fmt: skip
    with opened(config) as work, pytest.raises(VideoOPDError, match=r"another one of \[\[teachers"):
        refuse_other_scores(work, work.policy(0))


def test_an_example_that_nobody_takes_is_told_before_anything_is_computed(
    world: World, tmp_path: Path
) -> None:
    only = [teacher("short", takes={"source": ["short"]})]
    with (
        pytest.raises(VideoOPDError, match=r"are no teacher's, .*source 'long'.*`takes`"),
        opened(write(tmp_path / "lost.toml", world, only)),
    ):
        pass


def test_a_teacher_without_examples_is_warned_of(world: World, tmp_path: Path) -> None:
    config = write(
        tmp_path / "idle.toml", world, [teacher("short", takes={"source": "sort"}), teacher("long")]
    )
    with pytest.warns(RuntimeWarning, match=r"teachers\.short takes none of"), opened(config):
        pass
