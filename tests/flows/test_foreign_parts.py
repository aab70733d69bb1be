"""A package of somebody else's adds an objective, a curriculum, a template, an engine and a format,
with settings of their own, and another one evaluation protocols: a real round and a real import.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from flows.cli import main as videoopd
from opd_core.config.load import load_config
from opd_core.prompts.encoder import load_processor
from opd_core.tinyworld.world import World
from opd_core.types import VideoOPDError
from storage.runs.run import Run
from tests import forked
from tests.foreign_package import install
from tests.storage.finished_run import rewrite

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


@contextmanager
def opened_forgetful(config, folder, dtype, encoder, longest):
    """The hf engine, which loses an answer, and all scores."""
    from opd_core.engines.hf.sampling import HFEngine

    class Forgetful(HFEngine):
        name = "forgetful"

        def sample(self, videos, params):
            answers = dict(super().sample(videos, params))
            first = next(iter(answers))
            return answers | {first: answers[first][1:]}

        def score(self, videos, wanted):
            return iter(())

    with HF.opened(config, folder, dtype, encoder, longest) as engine:
        yield Forgetful(engine.model, encoder.prompts.tokenizer)


def forgetful_scorer(config):
    return f"forgetful in {config.machine.device}", "trees"


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
FORGETFUL = Engine(
    about="it forgets", opened=opened_forgetful, settings=PackSection, scorer=forgetful_scorer
)
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
    "videoopd.engines": {
        "narrow": "their_parts:NARROW", "forgetful": "their_parts:FORGETFUL"
    },
    "videoopd.formats": {"bars": "their_parts:BARS"},
}  # fmt: skip
PROTOCOLS = '''
from opd_core.spans.protocols.protocol import Protocol
from opd_core.types import Span


def middle(text):
    """A second about the number of letters that it holds."""
    letters = sum(c.isalpha() for c in text) % 5
    return Span(letters, letters + 1.0) if letters else None


LETTERS = Protocol(
    "letters counted, IoU > m", reader=middle, thresholds=(0.1, 0.5), comparison=">"
)
HALVES = Protocol(
    "the share of the truth that is covered",
    overlap=lambda a, b: max(0.0, min(a.end, b.end) - max(a.start, b.start)) / (b.end - b.start),
    thresholds=(0.25,),
)
'''
PROTOCOL_POINTS = {
    "videoopd.protocols": {
        "letters": "their_protocols:LETTERS", "halves": "their_protocols:HALVES"
    },
}  # fmt: skip
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
COMMANDS = """
import contextlib, io, json, sys
from flows.cli import main
said = []
for command in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        main(command)
    said.append(out.getvalue())
print(json.dumps(said))
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


def with_their_packages(folder: Path, code: str, *arguments: object) -> str:
    """What `code` prints where their packages are installed: parts in `site`, protocols in
    `judges`."""
    theirs = install(folder / "site", "their_parts", SOURCE, POINTS)
    protocols = install(folder / "judges", "their_protocols", PROTOCOLS, PROTOCOL_POINTS)
    path = os.pathsep.join(map(str, (ROOT, theirs, protocols)))
    done = forked.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    printed: str = done.stdout
    return printed


@pytest.mark.slow
@pytest.mark.in_turn
def test_a_round_with_parts_of_another_package(
    config: Path, tmp_path: Path, models: dict[str, Path]
) -> None:
    printed = with_their_packages(tmp_path, ROUND, config, tmp_path / "run")
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
    _judged_by_their_protocols(run, [ROOT, tmp_path / "site"], tmp_path / "judges")


def _judged_by_their_protocols(run: Run, others: list[Path], protocols: Path) -> None:
    """What they make of an answer stands in the table and in what commands say, and is audited."""

    def said(*commands: list[str], path: Sequence[Path] = (*others, protocols)) -> list[str]:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
        done = forked.run(
            [sys.executable, "-c", COMMANDS, json.dumps(commands)],
            cwd=ROOT, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        printed: list[str] = json.loads(done.stdout.splitlines()[-1])
        return printed

    examples = {e["example_id"]: e for e in run.examples().collect().to_dicts()}
    rows = run.evaluations().collect().to_dicts()
    ious = []
    for row in rows:
        halves, letters = row["judgements"]
        assert (letters["protocol"], halves["protocol"]) == ("letters", "halves")
        assert halves["start"] == row["predicted_start"]
        start = sum(c.isalpha() for c in row["text"]) % 5
        assert letters["start"] == (start or None)
        truth = examples[row["example_id"]]
        shared = min(start + 1, truth["span_end"]) - max(start, truth["span_start"])
        whole = max(start + 1, truth["span_end"]) - min(start, truth["span_start"])
        ious.append(max(0.0, shared / whole) if start else 0.0)
        assert letters["iou"] == pytest.approx(ious[-1])
    assert 0 < sum(ious) < len(ious)
    where = str(run.path)
    (status, table, words, asked, card, audited, diff) = said(
        ["status", where, "--json"], ["status", where], ["evaluate", where],
        ["evaluate", where, "--policy", "0", "--format", "json"],
        ["export", where, "--to", "hub-folder", "--out", f"{where}-folder"],
        ["audit", where], ["diff", f"{where}@1", where],
    )  # fmt: skip
    for policy in json.loads(status)["policies"]:
        mine = [i for i, row in zip(ious, rows, strict=True)
                if row["policy_version"] == policy["policy_version"]]  # fmt: skip
        assert policy["metrics"]["letters_miou"] == pytest.approx(sum(mine) / len(mine))
        assert policy["metrics"]["letters_r1_10"] == sum(i > 0.1 for i in mine) / len(mine)
        assert "halves_r1_25" in policy["metrics"] and "halves_r1_50" not in policy["metrics"]
    assert "letters" in table and "halves" in table
    assert "letters: letters counted, IoU > m." in words and "R1@0.25" in words
    assert "letters_parse_failures" in json.loads(asked)["groups"][0]["metrics"]
    assert "| halves | R1@0.25 |" in Path(f"{where}-folder", "README.md").read_text(), card
    assert "eval IoU, letters" in diff and "eval IoU, halves" in diff
    assert "✗" not in audited and "not installed" not in audited
    (without, table) = said(["audit", where], ["status", where], path=others)
    assert "✗" not in without
    assert f"{len(rows)} were judged by halves, which is not installed here" in without
    assert "letters" not in table

    def change(rows: list[dict[str, Any]]) -> None:
        rows[-1]["judgements"][-1]["iou"] = 0.123

    rewrite(run.path, "evaluations", change)
    (found, unseen) = *said(["audit", where]), *said(["audit", where], path=others)
    assert "letters_iou is 0.123 and should be" in found and "0.123" not in unseen


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
    said = json.loads(with_their_packages(tmp_path, code, config, *faults, *same, *other))
    assert [(s, w) for s, w in zip(said, faults.values(), strict=False) if w not in s] == []
    hashes = said[len(faults) :]
    assert len(set(hashes[:2])) == 1 and len(set(hashes)) == 4, "each setting counts"


def test_their_engines_settings_are_part_of_what_is_reused(config: Path, tmp_path: Path) -> None:
    """Of a question's key and a score's hash: answers of another setting are not copied."""
    code = """
import json, sys
from opd_core.config.load import load_config
from opd_core.prompts.question_key import evaluation_question, prediction_question
from opd_core.scoring.trees import describe_scorer
def keys(*settings):
    config = load_config(sys.argv[1], ["teacher.engine=forgetful", *settings])
    return [evaluation_question(config, "p"), prediction_question(config, "p"),
            describe_scorer(config, "p")]
print(json.dumps([
    keys(), keys("forgetful.tokens=4096"), keys("forgetful.tokens=9"), keys("narrow.tokens=9"),
]))
"""
    plain, default, teachers, evaluations = json.loads(with_their_packages(tmp_path, code, config))
    assert plain == default
    assert "forgetful in cpu; " in plain[2] and '; settings {"tokens": 4096}; ' in plain[2]
    assert [a == b for a, b in zip(plain, teachers, strict=True)] == [True, False, False]
    assert [a == b for a, b in zip(plain, evaluations, strict=True)] == [False, True, True]


def test_an_engine_that_forgets_answers_stops_the_stage_by_its_name(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    configs = [
        write_config(tmp_path / key, SETTINGS | {key: "forgetful"})
        for key in ("rollout.engine", "teacher.engine")
    ]
    code = """
import sys
from tests.flows.kill_points import run_without_server
from opd_core.types import VideoOPDError
for config in sys.argv[1:]:
    try:
        run_without_server(config, 1)
    except VideoOPDError as error:
        print(error)
"""
    printed = with_their_packages(tmp_path, code, *configs).splitlines()
    told = [line for line in printed if line.startswith("the engine 'forgetful' gives ")]
    assert len(told) == 2 and "samples of" in told[0] and "no score to" in told[1]
    for config in configs:
        assert Run.open(config.with_name("run")).quarantine().collect().is_empty()


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
    digest, _, template = with_their_packages(tmp_path, code, config).partition("\n")
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
        outcomes[path] = forked.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True
        )
    without, done = outcomes.values()
    assert without.returncode == 2 and "'bars' is not one of 'timelens" in without.stderr
    assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert row["events"] == [{"query": "something moves", "span": [[0.5, 2.0]]}]
