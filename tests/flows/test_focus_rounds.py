"""Each curriculum in a real round: what is asked, scored and kept, and that an audit redoes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows.audit.walk import Depth, audit
from opd_core.cluster import computing
from opd_core.config.load import config_hash
from opd_core.rollout import answers as asking
from opd_core.tinyworld.world import World
from opd_core.types import VideoOPDError
from storage.runs.run import Run
from storage.tables.schemas import TABLES
from tests.flows.conftest import WriteConfig
from tests.flows.kill_points import run_without_server
from tests.storage.finished_run import rewrite
from tests.tiny_config import as_toml, tiny_settings

SELECTIONS = "selections follow from their inputs"
CASES: dict[str, dict[str, Any]] = {
    "stride": {"focus.selection": "stride"},
    "buckets": {"focus.selection": "buckets", "focus.buckets": 2},
    "gaussian": {"focus.selection": "gaussian"},
    "reverse_kl": {"focus.disagreement": "reverse_kl"},
    "reverse_kl by rollout": {"focus.disagreement": "reverse_kl", "focus.unit": "rollout"},
    # The student is above a threshold of 0.2 on some and below it on others.
    "scc": {"focus.curriculum": "scc", "focus.max_student_iou": 0.2, "focus.frontier": 3,
            "focus.anchors": 1},
    "scc by reverse_kl": {"focus.curriculum": "scc", "focus.max_student_iou": 0.2,
                          "focus.frontier": 3, "focus.anchors": 1,
                          "focus.disagreement": "reverse_kl"},
    "timelens": {"focus.curriculum": "timelens"},
    "uniform": {"focus.curriculum": "uniform"},
}  # fmt: skip


def broken(run: Path) -> dict[str, str]:
    verdicts = audit(Run.open(run), Depth(videos=0.0))
    return {v.link: v.broken for v in verdicts if v.broken}


@pytest.fixture(scope="module")
def shared(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of all cases, side by side; the first has the teacher's answers for the others."""
    return tmp_path_factory.mktemp("curricula")


def run_of(shared: Path, tiny_world: World, case: str) -> Run:
    folder = shared / case.replace(" ", "-")
    if not folder.exists():
        first = run_of(shared, tiny_world, "stride").path if case != "stride" else None
        cache = {"teacher.cache": str(first), "score.cache": str(first)} if first else {}
        settings = tiny_settings(folder, tiny_world) | CASES[case] | cache
        config = shared / f"{folder.name}.toml"
        config.write_text(as_toml(settings | {"evaluate.max_examples": 1, "focus.top_k": 4}))
        run_without_server(str(config), 1)
    return Run.open(folder)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.in_turn(always=["gaussian", "buckets"])
def test_a_round_and_its_audit(shared: Path, tiny_world: World, case: str) -> None:
    run = run_of(shared, tiny_world, case)
    rows = run.selections().sort("rollout_id").collect()
    scored = set(run.teacher_scores().collect()["rollout_id"])
    taken = rows.filter("selected")
    unit = "rollout_id" if "by rollout" in case else "example_id"
    count = {"uniform": 8}.get(case, 4)
    if not case.startswith("scc"):
        assert rows.height == 16 and taken[unit].n_unique() == count
    assert set(taken["rollout_id"]) <= scored
    assert json.loads(rows["settings"][0])["max_student_iou"] == CASES[case].get(
        "focus.max_student_iou", 0.7
    )
    versions = rows.select("rollouts_version", "predictions_version", "scores_version")
    assert versions.unique().height == 1 and min(versions.row(0)) >= 1
    needs_teacher = case not in ("timelens", "uniform")
    assert (run.teacher_predictions().collect().height > 0) == needs_teacher
    assert (rows["question_hash"].null_count() == 0) == needs_teacher
    assert (rows["weight"].null_count() == 0) == (case in ("gaussian", "timelens"))
    if case.startswith("reverse_kl"):
        assert scored == set(rows["rollout_id"]), "the ranking takes all scores"
        assert rows["reverse_kl"].null_count() == 0
        left = rows.filter(~pl.col("selected"))
        assert taken["reverse_kl"].min() >= left["reverse_kl"].max()  # type: ignore[operator]
    if case.startswith("scc"):
        reliable = rows.filter(pl.col("teacher_iou") >= 0.0)
        frontier = reliable.filter(pl.col("student_iou") < 0.2)
        anchors = reliable.filter(pl.col("student_iou") >= 0.2)
        assert frontier.height and anchors.height, "both kinds are there"
        for pool, most, members in (("frontier", 3, frontier), ("anchor", 1, anchors)):
            chosen = taken.filter(pl.col("pool") == pool)["example_id"].unique()
            assert len(chosen) == min(most, members["example_id"].n_unique())
            assert set(chosen) <= set(members["example_id"])
        if "reverse_kl" in case:
            anchored = taken.filter(pl.col("pool") == "anchor")["rollout_id"]
            assert scored == {*frontier["rollout_id"], *anchored}
        else:
            assert scored == set(taken["rollout_id"])
    assert broken(run.path) == {}


@pytest.mark.parametrize(
    ("case", "column", "value"),
    [
        ("gaussian", "weight", 0.125),
        ("gaussian", "seed", 7),
        ("gaussian", "settings", "{}"),
        ("reverse_kl", "reverse_kl", 0.125),
        ("scc", "pool", "bucket 0"),
        ("timelens", "rank", 99),
        ("timelens", "question_hash", "0"),
        ("uniform", "scores_version", 999),
    ],
)
@pytest.mark.in_turn(always=["gaussian-weight-0.125"])
def test_an_audit_finds_what_was_tampered_with(
    shared: Path, tiny_world: World, tmp_path: Path, case: str, column: str, value: Any
) -> None:
    run = run_of(shared, tiny_world, case)
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))
    rewrite(copy, "selections", lambda rows: rows[-1].update({column: value}))
    assert f"{column} is {value!r}" in broken(copy)[SELECTIONS]


def test_a_run_from_before_a_setting_came_follows_from_its_own(
    shared: Path, tiny_world: World, tmp_path: Path
) -> None:
    """A key that focus has now and its stored config and its rows have not."""
    copy = Path(shutil.copytree(run_of(shared, tiny_world, "stride").path, tmp_path / "run"))
    (file,) = (copy / "configs").glob("*.json")
    content = json.loads(file.read_text())
    del content["focus"]["timelens_sigma"]
    digest = config_hash(content)
    assert digest != file.stem
    file.unlink()
    (copy / "configs" / f"{digest}.json").write_text(json.dumps(content))

    def older(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["config_hash"] = digest
            if "settings" in row:
                settings = json.loads(row["settings"])
                del settings["timelens_sigma"]
                row["settings"] = json.dumps(settings, separators=(",", ":"))

    run = Run.open(copy)
    for name in TABLES:
        if run.scan(name).head(1).collect().height:
            rewrite(copy, name, older)
    verdicts = broken(copy)
    assert SELECTIONS not in verdicts, verdicts


def test_an_audit_ranks_the_stored_scores_again(
    shared: Path, tiny_world: World, tmp_path: Path
) -> None:
    run = run_of(shared, tiny_world, "reverse_kl")
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))

    def change(rows: list[dict[str, Any]]) -> None:
        rows[0]["teacher_logprobs"] = [p - 0.5 for p in rows[0]["teacher_logprobs"]]

    rewrite(copy, "teacher_scores", change)
    assert ": reverse_kl is " in broken(copy)[SELECTIONS]


def test_a_teacher_that_is_not_needed_answers_nothing(
    tiny_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "predict", lambda *_: pytest.fail("the teacher was asked"))
    few = {"rollout.examples_per_round": 4, "evaluate.max_examples": 1}
    config = tiny_config({"focus.curriculum": "timelens", **few})
    run_without_server(str(config), 1)
    run = Run.open(config.with_name("run"))
    assert run.teacher_scores().collect().height == 8


# --- the teacher's answers, kept for other runs -----------------------------------------------

FEW = {"rollout.examples_per_round": 5, "evaluate.max_examples": 1}


@pytest.fixture(scope="module")
def asked(write_config: WriteConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose teacher was asked."""
    folder = tmp_path_factory.mktemp("asked")
    run_without_server(str(write_config(folder, FEW)), 1)
    return folder / "run"


def predictions(run: Path) -> list[dict[str, Any]]:
    columns = ("example_id", "prediction_index", "question_hash", "text", "seed", "pixel_hash",
               "reused_from")  # fmt: skip
    frame = Run.open(run).teacher_predictions().select(columns)
    return frame.sort("question_hash", "example_id", "prediction_index").collect().to_dicts()


def test_another_runs_answers_need_no_teacher(
    write_config: Any, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = predictions(asked)
    origin = Run.open(asked).run_id
    cached = {"teacher.cache": asked}
    with monkeypatch.context() as patched:

        def computed(work: Any, plan: Any, among: Any) -> Any:
            assert work.stage != "validate" or not plan, "the teacher was asked"
            return computing.computed(work, plan, among)

        patched.setattr(asking, "computed", computed)
        summary = run_without_server(str(write_config(tmp_path / "second", FEW | cached)), 1)
    ours = predictions(tmp_path / "second" / "run")
    assert ours == [{**row, "reused_from": origin} for row in theirs] and len(ours) == 10
    assert "validate: 5 of 5 examples' answers were copied (100.0%)" in summary.rounds[-1].notes
    assert broken(tmp_path / "second" / "run") == {}
    # A chain names the run that asked.
    chain = {"teacher.cache": "../second/run"}
    run_without_server(str(write_config(tmp_path / "third", FEW | chain)), 1)
    assert {row["reused_from"] for row in predictions(tmp_path / "third" / "run")} == {origin}


def test_another_question_is_asked_again(write_config: Any, asked: Path, tmp_path: Path) -> None:
    cached = {"teacher.cache": asked, "prompt.template": "json"}
    run_without_server(str(write_config(tmp_path / "second", FEW | cached)), 1)
    found = predictions(tmp_path / "second" / "run")
    assert {row["reused_from"] for row in found} == {None}
    assert not {r["question_hash"] for r in found} & {
        r["question_hash"] for r in predictions(asked)
    }


@pytest.mark.in_turn
def test_a_run_whose_question_changes_asks_its_examples_again(
    write_config: Any, tiny_world: World, tmp_path: Path
) -> None:
    """All examples each round, so that round 2 has the very examples of round 1."""
    train = tmp_path / "train.jsonl"
    train.write_text("\n".join(tiny_world.train.read_text().splitlines()[:4]))
    every = FEW | {"rollout.examples_per_round": 100, "data.train": train}
    run_without_server(str(write_config(tmp_path, every)), 1)
    before = predictions(tmp_path / "run")
    run_without_server(str(write_config(tmp_path, every | {"prompt.template": "json"})), 1)
    after = predictions(tmp_path / "run")
    assert len(after) == 2 * len(before) and len({r["question_hash"] for r in after}) == 2
    asked = Run.open(tmp_path / "run").selections().select("policy_version", "question_hash")
    assert asked.unique().collect().height == 2, "each round names the question that it read"
    assert broken(tmp_path / "run") == {}
    answers = Run.open(tmp_path / "run").trajectories().select("teacher_answers").unique()
    assert answers.collect()["teacher_answers"].to_list() == [2], "not mixed"


def test_answers_to_other_pixels_are_refused(
    write_config: Any, asked: Path, tmp_path: Path
) -> None:
    first = Path(shutil.copytree(asked, tmp_path / "first" / "run"))
    rewrite(first, "teacher_predictions", lambda rows: rows[0].update(pixel_hash="0"))
    config = write_config(tmp_path / "second", FEW | {"teacher.cache": "../first/run"})
    with pytest.raises(VideoOPDError, match=r"answers to 1 examples, .* other pixels .*without"):
        run_without_server(str(config), 1)


def test_a_cache_that_is_no_run(write_config: Any, tmp_path: Path) -> None:
    config = write_config(tmp_path, FEW | {"teacher.cache": "nowhere"})
    with pytest.raises(VideoOPDError, match=r"^teacher\.cache: .*nowhere is no run .*; give the"):
        run_without_server(str(config), 1)
