"""The commands as they are typed: paths, files, prefixes, what a refused one leaves behind."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows import cli
from flows.commands import about, looking
from flows.console import answers
from flows.stage.prepare import opened
from opd_core.config.load import load_config
from opd_core.tinyworld.world import World
from opd_core.types import VideoOPDError
from storage.runs import run_folder
from storage.runs.run import Run
from tests import forked
from tests.flows.conftest import WriteConfig
from tests.flows.kill_points import run_without_server

Told = Callable[..., tuple[int, str, str]]

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, write_config: WriteConfig
) -> tuple[Path, Path]:
    """(config, run) of one round."""
    folder = tmp_path_factory.mktemp("commands")
    config = write_config(folder, {"update.max_steps": 1})
    run_without_server(str(config), 1)
    return config, folder / "run"


@pytest.fixture
def told(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Told:
    """`told("status", run)` is (code, standard output, standard error), in this process."""

    def run(*words: Any) -> tuple[int, str, str]:
        capfd.readouterr()
        code = cli.main([str(word) for word in words])
        return code, *capfd.readouterr()

    return run


def refused(told: Told, *words: Any) -> str:
    code, out, err = told(*words)
    assert code == 2, out + err
    assert err.startswith("videoopd: ") and err.count("\n") == 1, err
    assert "Traceback" not in out
    return err


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("rows.csv", lambda p: list(csv.DictReader(p.open()))),
        ("rows.CSV", lambda p: list(csv.DictReader(p.open()))),
        ("rows.json", lambda p: json.loads(p.read_text())),
        ("rows.jsonl", lambda p: [json.loads(line) for line in p.read_text().splitlines()]),
        ("rows.ndjson", lambda p: [json.loads(line) for line in p.read_text().splitlines()]),
        ("rows.parquet", lambda p: pl.read_parquet(p).to_dicts()),
    ],
)
def test_a_files_format_is_its_ending(
    finished: tuple[Path, Path],
    told: Told,
    tmp_path: Path,
    name: str,
    read: Callable[[Path], list[Any]],
) -> None:
    sql = "SELECT rollout_id, median(student_iou), count(*) FROM rollouts GROUP BY 1"
    file = tmp_path / name
    code, out, _ = told("query", finished[1], sql, "--out", file)
    assert (code, out) == (0, f"wrote 20 rows to {file}\n")
    rows = read(file)
    assert len(rows) == 20
    assert list(rows[0]) == ["rollout_id", "median(student_iou)", "count(*)"]
    before = file.read_bytes()
    assert "add --force" in refused(told, "query", finished[1], "SELECT 1", "--out", file)
    assert file.read_bytes() == before
    assert told("query", finished[1], "SELECT 1 AS x", "--out", file, "--force")[0] == 0
    assert [str(v) for row in read(file) for v in row.values()] == ["1"]
    assert [p.name for p in tmp_path.iterdir()] == [name], "nothing beside it"


def test_format_may_be_said_where_the_ending_does_not(
    finished: tuple[Path, Path], told: Told, tmp_path: Path
) -> None:
    sql = "SELECT 1 AS x"
    assert told("query", finished[1], sql, "--format", "csv", "--out", tmp_path / "a.txt")[0] == 0
    assert (tmp_path / "a.txt").read_text() == "x\n1\n"
    said = refused(told, "query", finished[1], sql, "--out", tmp_path / "b.xls")
    assert ".parquet" in said and ".xls" in said


@pytest.mark.parametrize("place", ["{tmp}", "{tmp}/no/rows.csv", "/dev/null", "/proc/rows.csv"])
def test_a_place_that_is_none_is_a_sentence(
    finished: tuple[Path, Path], told: Told, tmp_path: Path, place: str
) -> None:
    out = place.format(tmp=tmp_path)
    refused(told, "query", finished[1], "SELECT 1", "--format", "csv", "--force", "--out", out)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_query_leaves_no_file(
    finished: tuple[Path, Path], told: Told, tmp_path: Path
) -> None:
    refused(told, "query", finished[1], "SELECT nothing FROM rollouts", "--out", tmp_path / "a.csv")
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_replaced_by_force_and_nothing_else_is(
    finished: tuple[Path, Path], told: Told, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "out"
    words = ("export", finished[1], "--to", "hf", "--out", out)
    assert told(*words)[0] == 0
    assert "add --force" in refused(told, *words)
    code, printed, _ = told(*words, "--force", "--table", "updates")
    assert code == 0 and f"wrote 1 rows of updates to {out}" in printed
    assert sorted(p.name for p in (out / "data").iterdir()) == ["updates"]
    (out / "mine.txt").write_text("")
    assert "mine.txt" in refused(told, *words, "--force")
    empty = ("export", finished[1], "--to", "hf", "--table", "divergences")
    refused(told, *empty, "--out", tmp_path / "a" / "b" / "c")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new"]


# --- what is shown -------------------------------------------------------------------------------


def test_a_table_that_is_too_wide_is_shown_as_records(
    finished: tuple[Path, Path], told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql = "SELECT rollout_id, text, student_iou, sampling_logprobs FROM rollouts"
    monkeypatch.setenv("COLUMNS", "300")
    assert "| rollout_id " in told("query", finished[1], sql)[1]
    monkeypatch.setenv("COLUMNS", "60")
    _, out, _ = told("query", finished[1], sql)
    lines = out.splitlines()
    assert max(map(len, lines)) <= 60
    assert sum(line.startswith("-[ ") for line in lines) == 20
    assert sum(line.startswith("rollout_id        | v0-") for line in lines) == 20
    first = json.loads(told("query", finished[1], sql, "--format", "json")[1])[0]
    start = json.dumps([float(f"{p:.6g}") for p in first["sampling_logprobs"]])[:30]
    assert start in out.replace("\n                  | ", "")


def test_records_are_cut_off_in_length_and_number() -> None:
    frame = pl.DataFrame({"name": ["x" * 1000] * 60, "none": [None] * 60})
    out = answers.shown(frame, 80)
    assert "(1,000 characters)" in out and "(10 more; --out FILE has all)" in out
    assert out.count("none | null") == 50
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("asked", ["DESCRIBE {}", "desc {};", "SHOW COLUMNS FROM {}"])
@pytest.mark.parametrize("name", ["rollouts", "trajectories", "tokens", "rollouts_all", "updates"])
def test_describe_says_what_a_column_is(
    finished: tuple[Path, Path], told: Told, asked: str, name: str
) -> None:
    for run in (finished[1], f"{finished[1]}@1"):
        _, out, _ = told("query", run, asked.format(name), "--format", "json")
        rows = json.loads(out)
        assert [set(row) for row in rows] == [{"column", "type", "nullable", "description"}] * len(
            rows
        )
        assert all(row["description"] for row in rows)
    frame = Run.open(finished[1]).scan("rollouts")
    if name == "rollouts":
        assert {r["column"]: r["type"] for r in rows} == {
            n: str(t) for n, t in frame.collect_schema().items()
        }
        nullable = {r["column"]: r["nullable"] for r in rows}
        assert not nullable["rollout_id"] and nullable["predicted_start"]


@pytest.mark.parametrize("name", ["trajectories", "tokens"])
def test_what_a_view_calls_never_null_is_never_null(
    finished: tuple[Path, Path], told: Told, name: str
) -> None:
    _, out, _ = told("query", finished[1], f"DESCRIBE {name}", "--format", "json")
    never = [row["column"] for row in json.loads(out) if not row["nullable"]]
    run = Run.open(finished[1])
    frame = run.trajectories() if name == "trajectories" else run.tokens()
    assert frame.select(never).null_count().collect().row(0) == (0,) * len(never)
    assert "policy_version" in never


def test_describe_of_a_query_and_of_nothing(finished: tuple[Path, Path], told: Told) -> None:
    _, out, _ = told(
        "query", finished[1], "DESCRIBE SELECT max(rank) FROM selections", "--format", "json"
    )
    assert [row["column"] for row in json.loads(out)] == ["max(rank)"]
    assert "did you mean 'rollouts'?" in refused(told, "query", finished[1], "DESCRIBE rollout")


def test_show_takes_the_beginning_of_an_id(finished: tuple[Path, Path], told: Told) -> None:
    ids = Run.open(finished[1]).rollouts().select("rollout_id", "example_id").collect()
    rollout, example = ids.row(0)
    assert rollout in told("show", finished[1], rollout)[1]
    assert rollout in told("show", finished[1], rollout[:-2] + "-0")[1]
    unique = next(
        rollout[:n] for n in range(4, 40)
        if ids.filter(pl.col("rollout_id").str.starts_with(rollout[:n])).height == 2
    )  # fmt: skip
    both = sorted(ids.filter(pl.col("rollout_id").str.starts_with(unique))["rollout_id"])
    for asked in (unique, example, example[:12]):
        said = refused(told, "show", finished[1], asked)
        assert f"2 rollouts begin with {asked!r}" in said and ", ".join(both) in said
    assert "and 15 more" in refused(told, "show", finished[1], "v0-")
    assert "there is no rollout ''" in refused(told, "show", finished[1], "")


def test_status_for_programs_and_of_a_round(finished: tuple[Path, Path], told: Told) -> None:
    config, run = finished
    found = json.loads(told("status", run, "--json")[1])
    assert found["round"] == 2 and found["as_of_round"] is None
    assert found["goes_on"] == f"videoopd run {config}"
    assert {t["name"]: t["rows"] for t in found["tables"]}["rollouts"] == 20
    assert [p["policy_version"] for p in found["policies"]] == [0, 1]
    assert found["policies"][0]["rollouts"] is None, "absent is null"
    past = json.loads(told("status", f"{config}@1", "--json")[1])
    assert past["as_of_round"] == 1 and past["goes_on"] is None
    assert "as of round 1" in told("status", f"{run}@1")[1]
    assert "has not finished round 2" in refused(told, "status", f"{run}@2")


# --- runs and configs ----------------------------------------------------------------------------


def test_a_run_is_made_in_the_shells_folder(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    config = write_config(tmp_path / "configs")
    (tmp_path / "shell").mkdir()
    monkeypatch.chdir(tmp_path / "shell")
    words = ("--set", "evaluate.max_examples=2", "--set", "run.path=runs/foo")
    code, _, err = told("evaluate", config, *words)
    assert code == 0, err
    assert (tmp_path / "shell" / "runs" / "foo" / "run.json").is_file()
    assert not (tmp_path / "configs" / "runs").exists()


def test_a_folder_stands_for_the_config_that_made_it(
    finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, told: Told, tmp_path: Path
) -> None:
    """And says which that is."""
    config, run = finished
    ran = []
    monkeypatch.setattr("flows.launch.run_rounds", lambda *given: ran.append(given))
    code, _, err = told("run", run, "--rounds", 2, "--set", "focus.top_k=3")
    assert (code, err) == (0, f"config {config}\n")
    assert ran == [(str(config), 2, ("focus.top_k=3",))]


def test_a_folder_remembers_how_it_was_overridden(
    finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, told: Told, tmp_path: Path
) -> None:
    config, run = finished
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    with opened(str(config), [f"run.path={copy}", "focus.top_k=3"]):
        pass
    with opened(str(config), [f"run.path={copy}", "evaluate.max_examples=1"], goes_on=False):
        pass
    ran = []
    monkeypatch.setattr("flows.launch.run_rounds", lambda *given: ran.append(given))
    monkeypatch.chdir(tmp_path)
    assert told("run", "copy")[0] == 0
    assert ran == [(str(config), 1, (f"run.path={copy}", "focus.top_k=3"))]
    assert f"--set run.path={copy} --set focus.top_k=3\n" in told("status", "copy")[1]


def test_a_folder_without_its_config_says_so(
    finished: tuple[Path, Path], told: Told, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished[1], copy)
    said = refused(told, "run", copy)
    assert str(finished[0]) in said and f"--set run.path={copy}" in said
    run_folder.remember_config(copy, tmp_path / "gone.toml", ())
    assert "gone.toml, which is gone" in refused(told, "run", copy)
    (copy / run_folder.CONFIG_SOURCE_FILE).unlink()
    assert "does not say which config" in refused(told, "stage", "score", copy)
    assert "is no run" in refused(told, "run", tmp_path)


WRONG = {
    "a model without weights": {"student.path": "bare"},
    "a model that is none": {"teacher.path": "nothing"},
    "a cut off model": {"student.path": "cut"},
    "another vocabulary": {"student.path": "other"},
    "no annotations": {"data.train": "nothing.jsonl"},
    "annotations without an example": {"data.train": "bad.jsonl"},
    "nothing to evaluate": {"data.eval": "bad.jsonl"},
}


@pytest.fixture
def wrong_inputs(tmp_path: Path, models: dict[str, Path]) -> Path:
    for name in ("bare", "cut", "other"):
        shutil.copytree(models["student"], tmp_path / name)
    (tmp_path / "bare" / "model.safetensors").unlink()
    weights = (tmp_path / "cut" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    tokenizer = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    a, b = list(vocabulary)[5:7]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "nothing").mkdir()
    (tmp_path / "bad.jsonl").write_text('{"source": "x"}\n')
    return tmp_path


@pytest.mark.parametrize("what", WRONG)
def test_a_refused_run_leaves_no_folder(
    what: str, wrong_inputs: Path, write_config: WriteConfig
) -> None:
    config = write_config(wrong_inputs / "c", {"run.path": "new/deep/run"})
    wrong = [f"{key}={wrong_inputs / value}" for key, value in WRONG[what].items()]
    with pytest.raises(VideoOPDError), opened(str(config), wrong):
        pass
    assert [p.name for p in (wrong_inputs / "c").iterdir()] == ["config.toml"]


def test_a_stage_that_is_refused_before_anything_was_computed_leaves_none_either(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    config = str(write_config(tmp_path, {"run.path": "new/run"}))
    with pytest.raises(VideoOPDError, match="refused"), opened(config):
        raise VideoOPDError("refused")
    assert [p.name for p in tmp_path.iterdir()] == ["config.toml"]


def test_what_was_computed_stays_and_so_does_a_folder_of_the_users(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    config = str(write_config(tmp_path, {"run.path": "mine"}))
    (tmp_path / "mine").mkdir()
    with pytest.raises(VideoOPDError), opened(config):
        raise VideoOPDError("refused")
    assert list((tmp_path / "mine").iterdir()) == []
    from flows import stages

    with pytest.raises(VideoOPDError), opened(config) as work:
        stages.draw.fn(work, work.policy())
        raise VideoOPDError("refused")
    assert Run.open(tmp_path / "mine").draws().collect().height == 10
    with pytest.raises(VideoOPDError), opened(config):
        raise VideoOPDError("refused again")
    assert Run.open(tmp_path / "mine").draws().collect().height == 10


def test_another_process_in_the_run_is_no_reason_to_remove_it(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    config = str(write_config(tmp_path))
    with opened(config) as work:
        with pytest.raises(VideoOPDError, match="in use"), opened(config):
            pass
        assert work.run.examples().collect().height > 0


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("/proc/run", "nothing can be written in /proc"),
        ("/proc/a/b", "nothing can be written in /proc"),
        ("/dev/null", "is a file"),
        ("{tmp}/file", "is a file"),
        ("{tmp}/file/run", "is a file"),
        ("{tmp}/full", "is not empty and no run"),
        ("{tmp}/" + "x" * 300, "too long"),
    ],
)
def test_a_place_where_no_run_can_be_is_told_before_a_server_starts(
    write_config: WriteConfig,
    tmp_path: Path,
    told: Told,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    said: str,
) -> None:
    monkeypatch.setattr("flows.launch.connect", lambda: pytest.fail("a server was started"))
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    config = write_config(tmp_path / "c")
    words = ("--set", f"run.path={place.format(tmp=tmp_path)}")
    assert said in refused(told, "run", config, *words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "file", "full"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_a_sentence(
    write_config: WriteConfig, tmp_path: Path, told: Told
) -> None:
    (tmp_path / "ro").mkdir(mode=0o555)
    config = write_config(tmp_path / "c")
    assert "cannot be written" in refused(
        told, "run", config, "--set", f"run.path={tmp_path}/ro/run"
    )


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("rollouts", ("status", "{run}")),
        ("rollouts", ("show", "{run}", "v0")),
        ("rollouts", ("query", "{run}", "SELECT text FROM rollouts")),
        ("rollouts", ("export", "{run}", "--to", "jsonl", "--out", "{tmp}/out")),
        ("rollouts", ("diff", "{run}", "{run}")),
        ("rollouts", ("audit", "{run}", "--videos", "0")),
        ("rollouts", ("stage", "focus", "{run}")),
        ("evaluations", ("evaluate", "{run}")),
        ("reruns", ("stage", "stale", "{run}")),
    ],
)
def test_a_truncated_table_is_a_sentence(
    finished: tuple[Path, Path],
    told: Told,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    table: str,
    words: tuple[str, ...],
) -> None:
    config, run = finished
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    run_folder.remember_config(copy, config, [f"run.path={copy}"])
    folder = copy / "tables" / f"{table}.lance"
    for file in [*folder.glob("data/*")] or [*folder.glob("_versions/*.manifest")]:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    def stage(name: str, config: str, round: int | None, force: bool, overrides: list[str]) -> None:
        from flows import stages

        with opened(config, overrides) as work:
            getattr(stages, name).fn(work, work.policy_at(name, 1), True)

    monkeypatch.setattr("flows.launch.run_stage", stage)
    code, _, err = told(*(word.format(run=copy, tmp=tmp_path) for word in words))
    said = err.splitlines()[-1]
    assert code == 2 and said.startswith("videoopd: ") and f"table {table}" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("place", "content", "words", "said"),
    [
        ("run.json", "{}", ("status",), "run.json is damaged"),
        ("run.json", "[", ("query", "SELECT 1"), "run.json is damaged"),
        ("configs/*.json", "{", ("status",), "cannot be read; restore it"),
        ("configs/*.json", "{", ("diff", "{run}"), "cannot be read, and rows name it"),
        ("tables/format.json", "{", ("show", "v0"), "format.json is damaged"),
    ],
)
def test_a_damaged_file_of_a_run_is_a_sentence(
    finished: tuple[Path, Path],
    told: Told,
    tmp_path: Path,
    place: str,
    content: str,
    words: tuple[str, ...],
    said: str,
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished[1], copy)
    for file in copy.glob(place):
        file.write_text(content)
    name, *rest = words
    assert said in refused(told, name, copy, *(word.format(run=copy) for word in rest))


def test_a_damaged_frame_store_does_not_spoil_the_status(
    finished: tuple[Path, Path], told: Told, tmp_path: Path
) -> None:
    shutil.copytree(finished[1], tmp_path / "run")
    shutil.copytree(finished[1].parent / "videoopd-frames", tmp_path / "videoopd-frames")
    damaged = [file for file in (tmp_path / "videoopd-frames").rglob("*") if file.is_file()]
    assert len(damaged) > 2
    for file in damaged:
        file.write_bytes(file.read_bytes()[:5])
    code, out, _ = told("status", tmp_path / "run")
    (line,) = (line for line in out.splitlines() if line.startswith("frames "))
    assert code == 0 and str(tmp_path / "videoopd-frames") in line


# --- the rest ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "missing command; `videoopd --help`"),
        (("rnu", "x"), "did you mean 'run'?"),
        (("run",), "missing argument 'CONFIG'; `videoopd run --help`"),
        (("run", "c", "--rounds"), "requires an argument; `videoopd run --help`"),
        (("run", "c", "--rounds", "0"), "'0' is not a whole number above 0"),
        (("run", "c", "--round", "x", "--nothing"), "did you mean '--rounds'?"),
        (("run", "c", "d"), "extra argument (d)"),
        (("stage", "scroe", "c"), "did you mean 'score'?"),
        (("stage", "x", "c"), "'x' is not one of 'draw', 'validate', 'rollout'"),
        (("audit", "r", "--deep", "2"), "'2' is not a share"),
        (("audit", "r", "--videos", "nan"), "'nan' is not a share"),
        (("export", "r", "--out", "x"), "missing option '--to'; choose from: parquet"),
        (("query", "r", "s", "--format", "xls"), "not one of 'table', 'json'"),
        (("completion", "csh"), "did you mean 'zsh'?"),
        (("bench", "tres"), "did you mean 'trees'?"),
        (("tinyworld", "make", "--out", "/proc/x"), "cannot be made"),
        (("study", "nowhere.toml"), "there is no study at"),
        (("study", "x.toml", "sft"), "arms stand after --arms"),
        (
            ("import", "timelens-100k", "no.jsonl", "--videos", ".", "--out", "/tmp/x.jsonl"),
            "no.js",
        ),
        (("init", "/proc/x.toml"), "cannot be written"),
        (("init", "no/x.toml"), "there is no folder no"),
        (("status", "x" * 300), "too long"),
    ],
)
def test_whatever_is_wrong_is_one_sentence(
    told: Told, words: tuple[object, ...], said: str
) -> None:
    assert said in refused(told, *words)


def test_init_writes_a_config_and_replaces_nothing(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = told("init")
    assert code == 0 and "videoopd run videoopd.toml" in out
    assert load_config("videoopd.toml").run.path == tmp_path / "runs" / "first"
    assert "is there already" in refused(told, "init")
    assert "data.videos" in refused(told, "run", "videoopd.toml"), "before any model is fetched"
    assert [p.name for p in tmp_path.iterdir()] == ["videoopd.toml"]


def test_an_import_of_nothing_leaves_no_folder(
    told: Told, tmp_path: Path, tiny_world: World
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"source": "x"}\n')
    words = ("import", "timelens-100k", bad, "--videos", tiny_world.videos)
    said = refused(told, *words, "--out", tmp_path / "a" / "b" / "t.jsonl")
    assert "nothing could be taken" in said and "the first bad.jsonl:1" in said
    assert [p.name for p in tmp_path.iterdir()] == ["bad.jsonl"]


def test_quietly_there_is_no_progress(
    told: Told, finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.console.progress import is_quiet, progress

    monkeypatch.setenv("VIDEOOPD_PROGRESS", "1")
    seen = []

    def working(**given: object) -> None:
        seen.append(is_quiet())
        with progress("score", 3) as advance:
            advance(3)

    monkeypatch.setattr(looking.status, "callback", working)
    for words in (("-q", "status", "r"), ("status", "r", "--quiet"), ("status", "r")):
        told(*words)
    assert seen == [True, True, False] and not is_quiet()


def test_a_quiet_status_is_a_line(told: Told, finished: tuple[Path, Path]) -> None:
    assert told("-q", "status", finished[1])[1] == "round 2: nothing drawn yet\n"


def test_a_quiet_audit_is_its_last_line_and_what_is_broken(
    told: Told, finished: tuple[Path, Path], tmp_path: Path
) -> None:
    words = ("-q", "audit", "--videos", "0")
    assert re.fullmatch(r"all \d+ links hold\n", told(*words, finished[1])[1])
    shutil.copytree(finished[1], tmp_path / "run")
    for file in (tmp_path / "run" / "configs").iterdir():
        file.unlink()
    code, out, _ = told(*words, tmp_path / "run")
    assert code == 1 and "✗ configs" in out and "✓" not in out


def test_quiet_rounds_are_one_line(
    capsys: pytest.CaptureFixture[str], finished: tuple[Path, Path]
) -> None:
    from flows.console.progress import quietly
    from flows.console.report import print_rounds
    from flows.numbers.outcome import summarize

    with opened(str(finished[0])) as work:
        summary = summarize(work, 1, [])
    with quietly(True):
        print_rounds(finished[1], [summary], last=False)
        print_rounds(finished[1], [summary])
    assert capsys.readouterr().out == f"round 1: eval mIoU {summary.miou:.3f}; {finished[1]}\n"


def test_versions_are_read_from_metadata() -> None:
    code = (
        "import sys, flows.cli\n"
        "assert flows.cli.main(['--version']) == 0\n"
        "assert not {'torch', 'transformers', 'lance', 'polars', 'pydantic'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    from importlib.metadata import version

    assert f"torch {version('torch')}\n" in done.stdout
    assert f"pylance {version('pylance')}\n" in done.stdout
    assert done.stdout.startswith("videoopd ")


@pytest.mark.parametrize("shell", about.SHELLS)
def test_completion_is_a_script_that_asks_this_program(told: Told, shell: str) -> None:
    code, out, _ = told("completion", shell)
    assert code == 0
    assert f"_VIDEOOPD_COMPLETE={shell}_complete" in out


TYPED = {
    "sta": ["stage", "status"],
    "stage va": ["validate"],
    "stage validate ti": ["tiny.toml"],
    "run ti": ["tiny.toml"],
    "query r s --format par": ["parquet"],
    "run r --ro": ["--rounds"],
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize("typed", TYPED)
def test_completion_completes_in_a_real_bash(told: Told, tmp_path: Path, typed: str) -> None:
    """Where the program leaves names of files to bash, it says so by `compopt`."""
    (tmp_path / "videoopd.bash").write_text(told("completion", "bash")[1])
    (tmp_path / "tiny.toml").write_text("")
    program = tmp_path / "bin" / "videoopd"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m flows.cli "$@"\n')
    program.chmod(0o755)
    script = f"""
    compopt() {{ COMPREPLY=($(compgen -f -- "${{COMP_WORDS[COMP_CWORD]}}")); }}
    source videoopd.bash
    COMP_WORDS=(videoopd {typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
    _videoopd_completion videoopd
    echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{program.parent}:{os.defpath}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == TYPED[typed]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh")
def test_zsh_reads_its_script(told: Told, tmp_path: Path) -> None:
    (tmp_path / "videoopd.zsh").write_text(told("completion", "zsh")[1])
    subprocess.run(["zsh", "-n", tmp_path / "videoopd.zsh"], check=True)


def test_several_arms_stand_after_one_option(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr("flows.study.run.study", given.append)
    words = ("study", "x.toml", "--arms", "base", "sft", "grpo", "--jobs", 3, "--arms", "opd")
    assert told(*words)[0] == 0
    assert sorted(given[0].arms) == ["base", "grpo", "opd", "sft"] and given[0].jobs == 3


def test_help_names_the_commands_in_the_order_of_their_use(told: Told) -> None:
    _, out, _ = told("--help")
    named = re.findall(r"^  ([a-z]+)  +[a-z]", out, re.MULTILINE)
    assert named == list(cli.program.commands)
    assert named.index("init") < named.index("run") < named.index("status") < named.index("up")


def test_bench_lists_what_it_measures(told: Told) -> None:
    code, out, _ = told("bench", "--list")
    assert code == 0
    assert re.search(r"^trees +prefix trees", out, re.MULTILINE)


def test_transformers_draws_no_bars(finished: tuple[Path, Path]) -> None:
    """Neither where a server is involved nor where none is: `evaluate` loads a model by itself."""
    config, _ = finished
    done = forked.run(
        [sys.executable, "-m", "flows.cli", "evaluate", config, "--model",
         str(load_config(config).teacher.path)],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=200,
    )  # fmt: skip
    assert done.stderr == ""


def test_output_on_a_full_disk_is_a_sentence(finished: tuple[Path, Path]) -> None:
    with Path("/dev/full").open("w") as full:
        done = forked.run(
            [sys.executable, "-m", "flows.cli", "query", str(finished[1]), "SELECT 1"],
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=100,
        )  # fmt: skip
    assert done.returncode == 2
    assert "No space left" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [("--version",), ("--help",), ("stage", "--help")])
def test_what_prints_and_ends_may_be_read_by_head(words: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *words],
            cwd=ROOT, stdout=closed, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
