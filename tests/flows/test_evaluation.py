"""`videoopd evaluate` on real runs and folders of tiny models: rows, numbers, mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from flows.audit.walk import Depth, audit
from flows.cli import main
from flows.evaluation.answers import Answers, of_policy
from flows.evaluation.command import _show_comparison, _show_groups
from flows.evaluation.groups import compare, groups, numbers
from opd_core.spans.metrics import per_example
from opd_core.tinyworld.world import World
from storage.runs.run import Run
from tests.flows.kill_points import run_without_server
from tests.known import known
from tests.storage.finished_run import rewrite
from tests.tiny_config import ROOT, as_toml, tiny_settings

TEACHER = ROOT / "configs" / "tiny" / "teacher"
STUDENT = ROOT / "configs" / "tiny" / "student"


@pytest.fixture(scope="module")
def config(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one round; 12 eval sentences by the config of the run, 20 by the one returned."""
    folder = tmp_path_factory.mktemp("evaluated")
    settings = tiny_settings(folder / "run", tiny_world)
    for name, count in (("first.toml", 12), ("all.toml", 20)):
        (folder / name).write_text(as_toml(settings | {"evaluate.max_examples": count}))
    run_without_server(str(folder / "first.toml"), 1)
    return folder / "all.toml"


def as_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["evaluate", *(str(a) for a in arguments), "--format", "json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(["evaluate", *(str(a) for a in arguments)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("videoopd: ")
    return said


def test_a_run_is_read_and_a_config_asks_what_is_missing(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = config.with_name("run")
    (stored,) = as_json(capsys, run, "--policy", "0")["groups"]
    assert stored["examples"] == 12
    rows = Run.open(run).evaluations().filter(pl.col("policy_version") == 0).collect()
    assert stored["metrics"]["strict_miou"]["value"] == pytest.approx(rows["iou"].mean())
    (asked,) = as_json(capsys, config, "--policy", "0")["groups"]
    assert asked["examples"] == 20, "8 more were asked"
    (again,) = as_json(capsys, run, "--policy", "0")["groups"]
    assert again == asked
    (newest,) = as_json(capsys, run)["groups"]
    assert newest["examples"] == 12, "the newest policy, which has its first 12"
    low, value, high = (asked["metrics"]["strict_miou"][k] for k in ("low", "value", "high"))
    assert low <= value <= high
    assert as_json(capsys, f"{run}@1")["groups"][0] == newest


def test_groups_share_out_the_examples(config: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(config.with_name("run"), tmp_path / "run"))

    def change(rows: list[dict[str, Any]]) -> None:
        videos = sorted({row["video_path"] for row in rows})
        for row in rows:
            row["duration"] = (12.0, 45.0, 300.0)[videos.index(row["video_path"]) % 3]
            row["source"] = "odd" if videos.index(row["video_path"]) % 2 else "even"

    rewrite(copy, "examples", change)
    answers = of_policy(Run.open(copy), 0)
    for by, names in (
        ("duration", ["0-30 s", "30-60 s", "300 s and more"]),
        ("source", ["even", "odd"]),
    ):
        every, *parts = groups(answers, by)
        assert [g.name for g in parts] == names
        assert sum(g.examples for g in parts) == every.examples
        assert sum(g.videos for g in parts) == every.videos
        weighted = sum(known(g.metrics["timelens_r1_30"].value) * g.examples for g in parts)
        assert weighted / every.examples == pytest.approx(every.metrics["timelens_r1_30"].value)


def test_any_models_folder_becomes_rows_that_are_no_policys(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.open(config.with_name("run"))
    before = run.evaluations().collect()
    found = as_json(capsys, config, "--model", TEACHER)
    rows = run.model_evaluations().collect()
    assert found["groups"][0]["examples"] == 20 == rows.height
    assert rows["model_hash"].unique().to_list() == [run.teacher_hash]
    assert rows["model_id"].unique().to_list() == ["teacher"]
    assert run.evaluations().collect().equals(before)
    with monkeypatch.context() as patched:
        patched.setattr("opd_core.engines.choice.opened_engine", lambda *_: pytest.fail("asked"))
        assert as_json(capsys, config, "--model", TEACHER) == found, "from its rows"
    # Asked in other words it is another question, and the rows stay apart.
    other = config.with_name("other.toml")
    other.write_text(config.read_text() + 'prompt.template = "json"\n')
    assert as_json(capsys, other, "--model", TEACHER)["groups"][0]["examples"] == 20
    assert run.model_evaluations().collect()["question_hash"].n_unique() == 2
    verdicts = audit(Run.open(run.path), Depth(videos=0.0))
    assert [v for v in verdicts if v.broken] == []


def test_the_students_folder_answers_as_policy_0(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = as_json(capsys, config, "--policy", "0", "--against", STUDENT)
    assert found["shared"] == 20 and found["only_a"] == found["only_b"] == 0
    for metric in found["difference"]["metrics"].values():
        assert metric == {"value": 0.0, "low": 0.0, "high": 0.0, "share_not_above_zero": 1.0}


def test_two_models_are_compared_on_the_same_examples(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = as_json(capsys, config, "--model", TEACHER, "--against", STUDENT)
    gain = found["difference"]["metrics"]["strict_miou"]
    sides = [found[s]["metrics"]["strict_miou"]["value"] for s in ("of_a", "of_b")]
    assert gain["value"] == pytest.approx(sides[0] - sides[1])
    assert gain["low"] < gain["value"] < gain["high"] and gain["value"] > 0.1
    back = as_json(capsys, config, "--model", STUDENT, "--against", TEACHER)
    reverse = back["difference"]["metrics"]["strict_miou"]
    assert (reverse["low"], reverse["high"]) == pytest.approx((-gain["high"], -gain["low"]))
    assert main(["evaluate", str(config), "--model", str(TEACHER), "--against", str(STUDENT)]) == 0
    out = capsys.readouterr().out
    assert "20 examples that both answered" in out and "share of resamples <= 0" in out


def test_runs_are_compared_on_what_both_answered(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = config.with_name("run")
    as_json(capsys, config, "--policy", "0")
    found = as_json(capsys, run, "--against", f"{run}@0")
    assert found["shared"] == 12 and (found["only_a"], found["only_b"]) == (0, 8)
    gain = found["difference"]["metrics"]["strict_miou"]["value"]
    found = as_json(capsys, f"{run}@0", "--against", f"{run}@1")
    assert found["difference"]["metrics"]["strict_miou"]["value"] == pytest.approx(-gain)
    # A config asks what its side lacks: the other 8 of the newest policy.
    found = as_json(capsys, config, "--against", f"{config}@0")
    assert found["shared"] == 20
    a, b = of_policy(Run.open(run), 0), of_policy(Run.open(run), 1)
    both = a.rows.join(b.rows, on="example_id", suffix="_b")
    expected = float(np.mean((both["strict_miou"] - both["strict_miou_b"]).to_numpy()))
    assert compare(a, b).difference.metrics["strict_miou"].value == pytest.approx(expected)


def test_the_table_names_protocols_and_intervals(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(config.with_name("run")), "--by", "source"]) == 0
    out = capsys.readouterr().out
    for words in ("policy 1", "strict", "timelens", "R1@0.5", "no span", "bootstrap over"):
        assert words in out


def test_mistakes_are_one_sentence(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_world: World
) -> None:
    run = config.with_name("run")
    assert "has no policy 9; give one from 0 to 1" in refused(capsys, run, "--policy", 9)
    assert "the current policy is 1" in refused(capsys, config, "--policy", 9)
    assert "there is no model in" in refused(capsys, config, "--model", tmp_path / "nothing")
    assert "takes a config" in refused(capsys, run, "--model", TEACHER)
    assert "give one of them" in refused(capsys, config, "--model", TEACHER, "--policy", 0)
    assert "leave out --policy 1" in refused(capsys, f"{run}@0", "--policy", 1)
    assert "is no run" in refused(capsys, tmp_path / "nothing")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    assert "no usable processor" in refused(capsys, config, "--model", empty)
    shutil.copytree(TEACHER, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    assert str(tmp_path / "bare") in refused(capsys, config, "--model", tmp_path / "bare")
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    rewrite(copy, "evaluations", lambda rows: rows.clear())
    assert "has no answers to the eval split; give the config" in refused(capsys, copy)


def test_two_that_share_no_example(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_world: World
) -> None:
    swapped = {"data.train": str(tiny_world.eval), "data.eval": str(tiny_world.train)}
    settings = tiny_settings(tmp_path / "run", tiny_world) | swapped
    other = tmp_path / "other.toml"
    other.write_text(as_toml(settings | {"evaluate.max_examples": 3}))
    assert main(["evaluate", str(other)]) == 0, "a run is made where there is none"
    said = refused(capsys, config.with_name("run"), "--against", tmp_path / "run")
    assert "share no example; evaluate both on the same data.eval" in said


def test_what_cannot_be_read_is_set_aside_and_asked_again(
    tiny_config: Any, tiny_world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = Path(shutil.copytree(tiny_world.videos, tmp_path / "videos"))
    path = tiny_config({"data.videos": str(videos), "evaluate.max_examples": 6})
    first = json.loads(tiny_world.eval.read_text().splitlines()[0])["video_path"]
    kept = (videos / first).read_bytes()
    (videos / first).write_bytes(b"no video")
    found = as_json(capsys, path, "--model", STUDENT)["groups"][0]["examples"]
    run = Run.open(path.with_name("run"))
    assert 0 < found < 6 and found + run.quarantine().collect().height == 6
    assert run.quarantine().collect()["stage"].unique().to_list() == ["evaluate model"]
    (videos / first).write_bytes(kept)
    assert as_json(capsys, path, "--model", STUDENT)["groups"][0]["examples"] == 6


def test_the_deployments_summary_has_the_numbers(config: Path) -> None:
    from flows.deployments import DEPLOYMENTS

    summary = DEPLOYMENTS["evaluate"].fn(str(config), 0)
    (every,) = groups(of_policy(Run.open(config.with_name("run")), 0))
    assert summary.notes["answers"] == 20
    assert summary.notes["timelens_r1_50"] == every.metrics["timelens_r1_50"].value
    assert {k: summary.notes[k] for k in numbers(every)} == numbers(every)
    assert "strict_miou_low" in summary.notes


def test_answers_from_before_a_protocol_was_kept_have_no_number_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    older = pl.DataFrame(
        {
            "example_id": ["a", "b", "c"],
            "video": ["1", "2", "3"],
            "iou": [0.5, 1.0, 0.0],
            "predicted_start": [0.0, 1.0, None],
            "timelens_start": [0.0, None, None],
            "timelens_iou": [0.5, None, 0.0],
        }
    ).with_columns(value.alias(name) for name, value in per_example().items())
    answers = Answers("older", older)
    (every,) = groups(answers)
    unknown = {name for name, estimate in every.metrics.items() if estimate.value is None}
    assert unknown == {name for name in per_example() if name.startswith("timelens")}
    assert (
        every.metrics["strict_miou"].value == 0.5 and every.metrics["strict_miou"].low is not None
    )
    assert not unknown & set(numbers(every))
    _show_groups(answers, [every], "table")
    said = capsys.readouterr().out
    assert "some answers are of before timelens was kept" in said and "nan" not in said.lower()
    _show_groups(answers, [every], "json")
    found = json.loads(capsys.readouterr().out)["groups"][0]["metrics"]
    assert found["timelens_r1_50"]["value"] is None
    apart = compare(answers, answers)
    assert apart.difference.metrics["timelens_miou"].value is None
    assert apart.difference.metrics["qvhighlights_r1_50"].value == 0.0
    _show_comparison(apart, "table")
    assert "nan" not in capsys.readouterr().out.lower()
