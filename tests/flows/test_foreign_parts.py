"""A package of somebody else's adds an objective, a curriculum, a template, an engine and a format,
with settings of their own: a real round and a real import with it.
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
from opd_core.prompts.encoder import load_processor
from opd_core.tinyworld.world import World
from opd_core.types import VideoOPDError
from storage.runs.run import Run
from tests.foreign_package import install

ROOT = Path(__file__).resolve().parents[2]
SOURCE = '''
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from opd_core.annotations.formats.found import Annotated, Format, left_out
from opd_core.config.section import Section
from opd_core.config.sections import Positive
from opd_core.engines.hf.record import ENGINE as HF
from opd_core.extensions import Curriculum, Engine, Objective, PromptTemplate
from opd_core.types import Span


class SquaredSection(Section):
    weight: float = 0.5
    """Of the square."""
    file: Path | None = None


class PositiveSection(Section):
    top: Positive


class PackSection(Section):
    tokens: Positive = 4096


class SecondsSection(Section):
    digits: int = 1


def loss(inputs, chunk, weights_C):
    """The squared difference to the teacher's log-probs, and what the group adds."""
    difference_C = chunk.chosen_C - inputs.teacher_logprobs(chunk)
    assert weights_C is None and inputs.advantages(chunk).shape == difference_C.shape
    return inputs.settings.of("squared").weight * difference_C**2


def pick(units, settings, seed):
    import polars as pl

    from opd_core.focus.picked import PICKED, SELECTED

    top = settings.of("last_names").top
    ranked = units.sort("unit", descending=True).with_row_index("rank").with_columns(
        pool=pl.lit("by name"),
        weight=pl.lit(None, pl.Float64),
        picked=pl.when(pl.col("rank") < top)
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


@contextmanager
def opened(config, folder, dtype, encoder, longest):
    """The hf engine with the config's own limit of a forward pass."""
    from opd_core.engines.hf.sampling import HFEngine

    class Narrow(HFEngine):
        name = "narrow"
        version = f"narrow, {config.of('narrow').tokens} tokens"

    with HF.opened(config, folder, dtype, encoder, longest) as engine:
        tokenizer = encoder.prompts.tokenizer
        yield Narrow(engine.model, tokenizer, config.of("narrow").tokens)


def seconds(settings):
    return replace(SECONDS, text=f"Give the seconds of '{{query}}', {settings.digits} digits.")


SECONDS = PromptTemplate(
    text="",
    format_answer=lambda span: f"{span.start:.1f} {span.end:.1f}",
    parse_span=lambda text: None,
    reader="their seconds 1",
    about="seconds",
    settings=SecondsSection,
    configured=seconds,
)
NARROW = Engine(about="hf in small passes", opened=opened, settings=PackSection)
BARS = Format("VIDEO|START|END|QUERY", read)
SQUARED = Objective(
    about="the squared difference of the log-probs", loss=loss, of_teacher="logprobs",
    needs_groups=True, settings=SquaredSection,
)
LAST = Curriculum(about="the last by name", pick=pick, settings=PositiveSection)
'''
POINTS = {
    "videoopd.objectives": {"squared": "their_parts:SQUARED"},
    "videoopd.curricula": {"last_names": "their_parts:LAST"},
    "videoopd.templates": {"seconds": "their_parts:SECONDS"},
    "videoopd.engines": {"narrow": "their_parts:NARROW"},
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
OURS = {
    "prompt.template": "timelens",
    "rollout.engine": "hf",
    "focus.curriculum": "uniform",
    "update.objective": "grpo",
    "evaluate.engine": "hf",
}
THEIRS = {
    "prompt.template": "seconds",
    "rollout.engine": "narrow",
    "focus.curriculum": "last_names",
    "update.objective": "squared",
    "evaluate.engine": "narrow",
}
SETTINGS = THEIRS | {
    "update.squared.weight": 2.0,
    "focus.last_names.top": 3,
    "prompt.seconds.digits": 2,
    "narrow.tokens": 50,
    "rollout.examples_per_round": 6,
    "update.examples_per_step": 32,
}


@pytest.fixture
def config(write_config: Any, tmp_path: Path) -> Path:
    path: Path = write_config(tmp_path, SETTINGS)
    return path


def with_their_package(folder: Path, code: str, *arguments: object) -> str:
    """What `code` prints where their package is installed."""
    theirs = install(folder / "site", "their_parts", SOURCE, POINTS)
    path = os.pathsep.join(map(str, (ROOT, theirs)))
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_a_round_with_parts_of_another_package(
    config: Path, tmp_path: Path, models: dict[str, Path]
) -> None:
    printed = with_their_package(tmp_path, ROUND, config, tmp_path / "run")
    assert json.loads(printed.splitlines()[-1]) == []
    run = Run.open(tmp_path / "run")
    chosen = run.selections().collect()
    assert set(chosen["curriculum"]) == {"last_names"} and set(chosen["pool"]) == {"by name"}
    names = sorted(chosen["example_id"].unique())
    assert set(chosen.filter("selected")["example_id"]) == set(names[-3:])
    assert not len(run.teacher_predictions().collect()), "a curriculum that asks no teacher"
    (update,) = run.updates().collect().to_dicts()
    assert update["objective"] == "squared" and update["uses_scores"]
    for table in (run.rollouts(), run.evaluations()):
        assert set(table.select("engine").collect()["engine"]) == {"narrow"}
    assert set(run.rollouts().collect()["engine_version"]) == {"narrow, 50 tokens"}
    with_settings = run.path / "configs" / f"{update['config_hash']}.json"
    assert json.loads(with_settings.read_text())["narrow"] == {"tokens": 50}
    tokenizer = load_processor(models["student"]).tokenizer
    prompts = run.rollouts().select("prompt_token_ids").collect()["prompt_token_ids"]
    assert all("', 2 digits." in tokenizer.decode(ids) for ids in prompts.to_list())
    assert update["policy_hash"] != update["parent_hash"]
    scores = run.teacher_scores().select("rollout_id", "teacher_logprobs").collect()
    rows = run.rollouts().collect().join(scores, on="rollout_id")
    taken = rows.filter(rows["rollout_id"].is_in(chosen.filter("selected")["rollout_id"].implode()))
    squares = [
        2.0 * (ours - theirs) ** 2
        for row in taken.iter_rows(named=True)
        for ours, theirs in zip(row["sampling_logprobs"], row["teacher_logprobs"], strict=True)
    ]
    (step,) = update["steps"]
    assert step["loss"] == pytest.approx(sum(squares) / len(squares), rel=1e-4)


def test_without_the_package_its_names_are_unknown(
    config: Path, write_config: Any, tmp_path: Path, capsys: Any
) -> None:
    with pytest.raises(VideoOPDError, match="unknown key '[a-z_.]+'; known are: "):
        load_config(config)
    named = write_config(tmp_path / "named", THEIRS)
    known: list[str] = []
    for key, ours in OURS.items():
        with pytest.raises(VideoOPDError, match=f"{key} knows no '{THEIRS[key]}'; known are:"):
            load_config(named, known)
        known.append(f"{key}={ours}")
    assert load_config(named, known)
    assert videoopd(["run", str(config)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_what_another_package_needs_and_takes(config: Path, tmp_path: Path) -> None:
    """Its needs and its settings are held against the config like those of our own."""
    faults = {
        "rollout.rollouts_per_example=1": "'squared' compares answers to one prompt",
        "focus.unit=rollout": "'squared' needs all answers to an example",
        "update.objective=sqared": "did you mean 'squared'?",
        "update.sqared.weight=1": "unknown key 'update.sqared'; did you mean 'squared'?",
        "update.squared.wieght=1": "unknown key 'update.squared.wieght'; did you mean 'weight'?",
        "update.squared=3": "update.squared = 3 is not valid",
        "focus.last_names={}": "the key 'focus.last_names.top' is missing; add it",
        "focus.last_names.top=0": "focus.last_names.top = 0 is not valid",
        "narow.tokens=1": "unknown key 'narow'; did you mean 'narrow'?",
        "narrow.tokns=1": "unknown key 'narrow.tokns'; did you mean 'tokens'?",
        "teacher.engine=narrow": "teacher.engine = 'narrow' cannot score answers",
    }
    same = [f"run.path='{config.parent / 'else'}'", "update.squared.weight=2"]
    other = ["update.squared.weight=3", "prompt.seconds.digits=3", "focus.last_names.top=2"]
    code = """
import json, sys
from pathlib import Path
from opd_core.config.load import load_config
from opd_core.config.paths import from_folder
from opd_core.types import VideoOPDError
def said(setting):
    try:
        config = load_config(sys.argv[1], [setting])
    except VideoOPDError as error:
        return str(error)
    assert type(config).model_validate_json(config.to_json()) == config
    return config.hash
typed = from_folder(["update.squared.file=x"], Path("/typed"))
assert load_config(sys.argv[1], typed).update.of("squared").file == Path("/typed/x")
written = load_config(sys.argv[1], ["update.squared.file=x"]).update.of("squared").file
assert written == Path(sys.argv[1]).parent / "x"
assert load_config(sys.argv[1]).update.of("grpo").clip_low == 0.2
print(json.dumps([said(setting) for setting in sys.argv[2:]]))
"""
    said = json.loads(with_their_package(tmp_path, code, config, *faults, *same, *other))
    assert [(s, w) for s, w in zip(said, faults.values(), strict=False) if w not in s] == []
    hashes = said[len(faults) :]
    assert len(set(hashes[:2])) == 1 and len(set(hashes)) == 4, "each setting counts"


def test_a_config_without_their_settings_hashes_as_before(
    write_config: Any, tmp_path: Path
) -> None:
    """As it did before the package was there; a new config tells of them."""
    config = write_config(tmp_path, OURS)
    code = """
import sys
from opd_core.config.load import load_config
from opd_core.config.template import config_template
print(load_config(sys.argv[1]).hash)
print(config_template())
"""
    digest, _, template = with_their_package(tmp_path, code, config).partition("\n")
    assert digest == load_config(config).hash
    assert "#[update.squared]\n#weight = 0.5\n#     Of the square." in template
    assert "#[narrow]\n#tokens = 4096" in template
    assert "narrow: hf in small passes" in template


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
    assert without.returncode == 2 and "there is no FORMAT 'bars'" in without.stderr
    assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert row["events"] == [{"query": "something moves", "span": [[0.5, 2.0]]}]
