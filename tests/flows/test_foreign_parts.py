"""A package of somebody else's adds an objective, a curriculum, a template and a format: a real
round and a real import with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.cli import main as videoopd
from opd_core.config.load import load_config
from opd_core.tinyworld.world import World
from opd_core.types import VideoOPDError
from storage.runs.run import Run
from tests.foreign_package import install

ROOT = Path(__file__).resolve().parents[2]
SOURCE = '''
from opd_core.annotations.formats.found import Annotated, Format, left_out
from opd_core.extensions import Curriculum, Objective, PromptTemplate
from opd_core.types import Span


def loss(inputs, chunk, weights_C):
    """Half the squared difference to the teacher's log-probs, and what the group adds."""
    difference_C = chunk.chosen_C - inputs.teacher_logprobs(chunk)
    assert weights_C is None and inputs.advantages(chunk).shape == difference_C.shape
    return 0.5 * difference_C**2


def pick(units, settings, seed):
    import polars as pl

    from opd_core.focus.picked import PICKED, SELECTED

    ranked = units.sort("unit", descending=True).with_row_index("rank").with_columns(
        pool=pl.lit("by name"),
        weight=pl.lit(None, pl.Float64),
        picked=pl.when(pl.col("rank") < settings.top_k)
        .then(pl.lit(SELECTED))
        .otherwise(pl.lit("an earlier name")),
    )
    return ranked.select(pl.col(name).cast(kind) for name, kind in PICKED.items())


def read(path):
    for number, line in enumerate(path.read_text().splitlines(), 1):
        place = f"{path}:{number}"
        try:
            video, start, end, query = line.split("|")
            span = Span(float(start), float(end))
        except ValueError as error:
            yield left_out(place, None, error)
        else:
            yield Annotated(place, video, query, (span,))


SECONDS = PromptTemplate(
    text="Give the seconds of '{query}'.",
    format_answer=lambda span: f"{span.start:.1f} {span.end:.1f}",
    parse_span=lambda text: None,
    reader="their seconds 1",
)
BARS = Format("VIDEO|START|END|QUERY", read)
SQUARED = Objective(
    about="the squared difference of the log-probs", loss=loss, of_teacher="logprobs",
    needs_groups=True,
)
LAST = Curriculum(about="the last by name", pick=pick)
'''
POINTS = {
    "videoopd.objectives": {"squared": "their_parts:SQUARED"},
    "videoopd.curricula": {"last_names": "their_parts:LAST"},
    "videoopd.templates": {"seconds": "their_parts:SECONDS"},
    "videoopd.formats": {"bars": "their_parts:BARS"},
}
# What a round's command does, without a server; then the audit of all that it wrote.
ROUND = """
import json, sys
from tests.flows.kill_points import run_without_server
from flows.audit.walk import Depth, audit
from storage.runs.run import Run
run_without_server(sys.argv[1], 1)
verdicts = audit(Run.open(sys.argv[2]), Depth(1.0, 1.0, None, 0))
print(json.dumps([str(v) for v in verdicts if v.broken is not None]))
"""
SETTINGS = {
    "update.objective": "squared",
    "focus.curriculum": "last_names",
    "prompt.template": "seconds",
    "focus.top_k": 3,
    "rollout.examples_per_round": 6,
    "update.examples_per_step": 32,
}


@pytest.fixture
def config(write_config: Any, tmp_path: Path) -> Path:
    path: Path = write_config(tmp_path, SETTINGS)
    return path


@pytest.mark.slow
def test_a_round_with_parts_of_another_package(config: Path, tmp_path: Path) -> None:
    theirs = install(tmp_path / "site", "their_parts", SOURCE, POINTS)
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "flows", theirs)))
    done = subprocess.run(
        [sys.executable, "-c", ROUND, str(config), str(tmp_path / "run")],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == []
    run = Run.open(tmp_path / "run")
    chosen = run.selections().collect()
    assert set(chosen["curriculum"]) == {"last_names"} and set(chosen["pool"]) == {"by name"}
    names = sorted(chosen["example_id"].unique())
    assert set(chosen.filter("selected")["example_id"]) == set(names[-3:])
    assert not len(run.teacher_predictions().collect()), "a curriculum that asks no teacher"
    (update,) = run.updates().collect().to_dicts()
    assert update["objective"] == "squared" and update["uses_scores"]
    assert update["policy_hash"] != update["parent_hash"]
    scores = run.teacher_scores().select("rollout_id", "teacher_logprobs").collect()
    rows = run.rollouts().collect().join(scores, on="rollout_id")
    taken = rows.filter(rows["rollout_id"].is_in(chosen.filter("selected")["rollout_id"].implode()))
    squares = [
        0.5 * (ours - theirs) ** 2
        for row in taken.iter_rows(named=True)
        for ours, theirs in zip(row["sampling_logprobs"], row["teacher_logprobs"], strict=True)
    ]
    (step,) = update["steps"]
    assert step["loss"] == pytest.approx(sum(squares) / len(squares), rel=1e-4)


def test_without_the_package_its_names_are_unknown(config: Path, capsys: Any) -> None:
    with pytest.raises(VideoOPDError, match=r"prompt.template knows no 'seconds'; known are:"):
        load_config(config)
    known = ["prompt.template=timelens"]
    with pytest.raises(VideoOPDError, match=r"focus.curriculum knows no 'last_names'; known are:"):
        load_config(config, known)
    known.append("focus.curriculum=uniform")
    with pytest.raises(VideoOPDError, match=r"update.objective knows no 'squared'; known are:"):
        load_config(config, known)
    assert videoopd(["run", str(config)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_what_another_package_needs_is_asked_for(config: Path, tmp_path: Path) -> None:
    """Its needs are held against the config like those of our own."""
    theirs = install(tmp_path / "site", "their_parts", SOURCE, POINTS)
    code = (
        "import sys; from opd_core.config.load import load_config; "
        "load_config(sys.argv[1], sys.argv[2:])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(theirs)))}
    for setting, word in (
        ("rollout.rollouts_per_example=1", "'squared' compares answers to one prompt"),
        ("focus.unit=rollout", "'squared' needs all answers to an example"),
        ("update.objective=sqared", "did you mean 'squared'?"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, str(config), setting],
            cwd=ROOT, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert word in done.stderr.splitlines()[-1]


def test_an_import_of_a_format_of_another_package(tiny_world: World, tmp_path: Path) -> None:
    theirs = install(tmp_path / "site", "their_parts", SOURCE, POINTS)
    videos = Path(tiny_world.videos)
    (video, *_) = sorted(p.relative_to(videos) for p in videos.rglob("*.mp4"))
    (tmp_path / "a.txt").write_text(f"{video}|0.5|2.0|something moves\nno bars\n")
    command = (
        sys.executable, "-m", "flows.cli", "import", "bars", tmp_path / "a.txt",
        "--videos", videos, "--out", tmp_path / "out.jsonl",
    )  # fmt: skip
    outcomes = {}
    for path in (str(ROOT), os.pathsep.join((str(ROOT), str(theirs)))):
        environment = os.environ | {"PYTHONPATH": path}
        outcomes[path] = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True
        )
    without, done = outcomes.values()
    assert without.returncode == 2 and "'bars' is not one of 'timelens" in without.stderr
    assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert row["events"] == [{"query": "something moves", "span": [[0.5, 2.0]]}]
