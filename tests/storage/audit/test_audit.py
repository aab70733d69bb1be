from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import pytest

from flows import stages
from flows.audit.named import config_of
from flows.audit.walk import Depth, audit, chain
from flows.cli import main
from flows.stage.prepare import opened
from opd_core.config.load import config_hash
from opd_core.tinyworld.world import World
from opd_core.types import Span, VideoOPDError, make_example_id
from storage.audit.links import BrokenLink
from storage.runs.run import Run
from storage.tables.schemas import SCHEMA_VERSION
from tests.known import known
from tests.storage.finished_run import Finished, append_again, finished_run, rewrite

Rows = list[dict[str, Any]]
Change = Callable[[Rows], object]

WEIGHTS = "checkpoints hold the weights that were committed"
CHAIN = "each policy names its parent"
CONFIGS = "configs are those that rows name"
STEPS = "steps took the selection, as often as the config says"
SELECTIONS = "selections follow from their inputs"
SCORES = "scores are the update's teacher's"
ROLLOUTS = "rollouts are of exactly the parent's weights"
ANSWERS = "spans and IoUs follow from the answers"
EXAMPLES = "examples are their annotations"
VIDEOS = "videos are unchanged"
APPENDED = "tables were only appended to"
ATTEMPTS = "every attempt is accounted for"
TAKES = "nothing stands on superseded rows"
STORED = Depth(videos=0.0)


@pytest.fixture(scope="module")
def finished(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished_run(tmp_path_factory.getbasetemp() / "finished", tiny_world.videos.parent)


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Path:
    """The run, to be tampered with; its models and videos are where they were."""
    return Path(shutil.copytree(finished.run, tmp_path / "copy"))


def broken(run: Path, depth: Depth = STORED) -> dict[str, str]:
    """link -> what is wrong with it."""
    return {v.link: v.broken for v in audit(Run.open(run), depth) if v.broken}


def said(run: Path, link: str, depth: Depth = STORED) -> str:
    """What that link alone, as the audit walks it, finds wrong; "" where it holds."""
    try:
        dict(chain(depth))[link](Run.open(run))
    except (BrokenLink, VideoOPDError) as error:
        return str(error)
    return ""


def set_all(**values: Any) -> Change:
    def change(rows: Rows) -> None:
        for row in rows:
            row.update(values)

    return change


def set_last(**values: Any) -> Change:
    return lambda rows: rows[-1].update(values)


# --- a whole run ---------------------------------------------------------------------------------


def test_a_whole_run_holds_to_the_last_bit(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", str(finished.run), "--deep", "1"]) == 0
    out = capsys.readouterr().out
    assert out.count("✓") == 17 and "✗" not in out
    assert out.count("equal to the last bit") == 2
    assert "all 17 links hold" in out


def test_a_config_from_before_a_key_came_is_what_its_name_says(copy: Path) -> None:
    (file,) = (copy / "configs").glob("*.json")
    content = json.loads(file.read_text())
    assert content["update"].pop("entropy_weight") is False
    digest = config_hash(content)
    older = file.with_name(f"{digest}.json")
    older.write_text(json.dumps(content))
    run = Run.open(copy)
    assert digest != file.stem and config_of(run, digest) == config_of(run, file.stem)
    content["update"]["epochs"] += 1
    older.write_text(json.dumps(content))
    with pytest.raises(BrokenLink, match=f"its hash is .* should be '{digest}'"):
        config_of(run, digest)


def test_a_run_audits_as_of_a_round_too(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", f"{finished.run}@1", "--videos", "0", "--format", "json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["round"] == 1 and content["whole"]
    counts = {link["link"]: link["checked"]["count"] for link in content["links"]}
    assert counts[WEIGHTS] == 2 and counts[CHAIN] == 1


def test_rows_in_progress_and_leftovers_are_named(finished: Finished, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished.run, tmp_path / "run"))
    config = tmp_path / "run.toml"
    config.write_text(finished.config.read_text().replace(str(finished.run), str(run)))
    with opened(str(config)) as work:
        for stage in (stages.draw, stages.validate, stages.rollout):
            stage.fn(work, work.policy())
    (run / "policies" / ".v3.staging-0a1b2c3d").mkdir()
    (run / "tables" / "rollouts.lance" / "data" / "0011.lance").write_bytes(b"half a file")
    shutil.copytree(run / "policies" / "v2", run / "policies" / "v3")
    verdicts = {v.link: v for v in audit(Run.open(run), STORED)}
    assert [v.broken for v in verdicts.values() if v.broken] == []
    notes = "\n".join(known(verdicts[ATTEMPTS].checked).notes)
    assert "in progress, round 3: 16 rows of rollouts" in notes
    assert "policies/.v3.staging-0a1b2c3d: left by a killed update" in notes
    assert "policies/v3: published, not committed yet" in notes
    assert "rollouts: 1 data files of a killed write, in no version" in notes


# --- each link, tampered with --------------------------------------------------------------------


def test_an_edited_weight_file(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = copy / "policies" / "v1" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert main(["audit", str(copy), "--videos", "0"]) == 1
    printed = capsys.readouterr()
    assert f"✗ {WEIGHTS}: {file.parent}: the weights' hash is '" in printed.out
    assert f"the first broken link of {copy} is: {WEIGHTS}" in printed.err


@pytest.mark.parametrize("field", ["weights_hash", "parent_hash", "run_id", "policy_version"])
def test_an_edited_manifest(copy: Path, field: str) -> None:
    file = copy / "policies" / "v2" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: "x"}))
    assert said(copy, WEIGHTS).startswith(f"{file}: {field} is 'x' and should be ")


def test_a_missing_manifest_or_checkpoint(copy: Path) -> None:
    (copy / "policies" / "v2" / "manifest.json").unlink()
    assert "no readable manifest.json" in said(copy, WEIGHTS)
    shutil.rmtree(copy / "policies" / "v2")
    assert "v2" in said(copy, WEIGHTS)


def test_a_changed_base_student(finished: Finished, copy: Path) -> None:
    file = finished.models / "student" / "model.safetensors"
    content = file.read_bytes()
    try:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert f"student {file.parent}: the weights' hash" in said(copy, WEIGHTS)
    finally:
        file.write_bytes(content)


def test_another_parent(copy: Path) -> None:
    file = copy / "policies" / "v2" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "parent_hash": "x"}))
    rewrite(copy, "updates", set_last(parent_hash="x"))
    found = broken(copy)
    assert WEIGHTS not in found
    assert found[CHAIN].startswith("updates, policy_version 2: parent_hash is 'x' and should be '")
    assert APPENDED in found, "a walk goes on past a broken link"


def test_a_missing_parent(copy: Path) -> None:
    rewrite(copy, "updates", lambda rows: rows.pop(0))
    assert "the next policy_version is 2 and should be 1" in said(copy, CHAIN)


def test_an_edited_or_missing_config(copy: Path) -> None:
    (file,) = (copy / "configs").iterdir()
    file.write_text(file.read_text().replace('"top_k": 4', '"top_k": 5'))
    assert f"{file}: its hash is " in said(copy, CONFIGS)
    file.write_text("{}")
    assert "cannot be read" in said(copy, CONFIGS)
    file.unlink()
    assert said(copy, CONFIGS) == f"{file}: it is missing, and rows name it"


@pytest.mark.parametrize(
    ("table", "change", "link", "words"),
    [
        ("updates", set_last(tokens=1), STEPS, "updates, policy_version 2: tokens is 1 and"),
        ("updates", set_last(rollouts=1), STEPS, "policy_version 2: rollouts is 1 and should be 8"),
        ("updates", set_last(steps=[]), STEPS, "the number of steps is 0 and should be 1"),
        ("updates", set_last(teacher_hash="x"), SCORES, "has no score by teacher x"),
        ("trained_rollouts", set_last(step=1), STEPS, "step is 1 and should be 0"),
        ("trained_rollouts", lambda rows: rows.pop(), STEPS, "step is None and should be 0"),
        ("trained_rollouts", set_last(rollout_id="x"), STEPS, "step is None and should be 0"),
        ("trained_rollouts", set_last(student_logprobs=[-1.0]), STEPS, "log-probs is 1 and"),
        ("selections", set_all(selected=True), STEPS, "the number of steps is 1 and should be 2"),
        ("selections", set_last(rank=99), SELECTIONS, "rank is 99 and should be"),
        ("selections", set_last(reason="luck"), SELECTIONS, "reason is 'luck' and should be"),
        ("selections", set_last(teacher_iou=0.9), SELECTIONS, "teacher_iou is 0.9 and"),
        ("selections", lambda rows: rows.pop(), SELECTIONS, "its rows is 0 and should be 1"),
        ("teacher_predictions", set_all(iou=0.77), SELECTIONS, "and should be "),
        ("teacher_predictions", set_last(text="[1, 2]"), ANSWERS, "the predicted span is"),
        ("rollouts", set_last(student_iou=0.123), SELECTIONS, "and should be 0."),
        ("rollouts", set_last(student_iou=0.123), ANSWERS, "student_iou is 0.123 and should be"),
        ("rollouts", set_last(text="[1, 2]"), ANSWERS, "the predicted span is"),
        ("rollouts", set_last(policy_hash="x"), ROLLOUTS, "policy_hash is 'x' and should be '"),
        ("rollouts", set_last(seed=7), ROLLOUTS, "seed is 7 and should be"),
        ("rollouts", set_last(policy_version=5), ROLLOUTS, "policy_version is 5 and should be"),
        ("rollouts", set_last(sample_index=9), ROLLOUTS, "rollout_id is 'v1-"),
        ("rollouts", lambda rows: rows.clear(), STEPS, "there is no such rollout"),
        ("draws", lambda rows: rows.clear(), ROLLOUTS, "round 1 never drew its example"),
        ("evaluations", set_last(iou=0.123), ANSWERS, "iou is 0.123 and should be"),
        ("evaluations", set_last(timelens_iou=0.123), ANSWERS, "timelens_iou is 0.123 and"),
        ("evaluations", set_last(timelens_end=99.5), ANSWERS, "timelens_end is 99.5 and"),
        ("evaluations", set_last(timelens_start=None), ANSWERS, "timelens_start is None and"),
        ("evaluations", set_last(judgements=[{"protocol": "strict", "start": None, "end": None,
         "iou": 0.123}]), ANSWERS, "strict_"),
        ("evaluations", set_last(policy_hash="x"), ROLLOUTS, "policy_hash is 'x' and should be"),
        ("teacher_scores", set_all(teacher_hash="x"), SCORES, "has no score by teacher"),
        ("teacher_scores", set_all(teacher_hash="x"), SELECTIONS, "selected is True and"),
        ("teacher_scores", set_last(teacher_logprobs=[-1.0]), SCORES,
         "the number of its log-probs is 1 and should be"),
        ("examples", set_last(query="a cat"), EXAMPLES, "the hash of its annotation is"),
        ("examples", set_last(span_start=0.01), EXAMPLES, "the hash of its annotation is"),
        ("rollouts", set_last(take=1), TAKES, "rollout of round 2: it has rows of take 1, which"),
        ("examples", set_last(take=1), TAKES, "take is 1 and should be 0"),
        ("draws", set_last(run_id="x"), ATTEMPTS, "run_id is 'x' and should be"),
        ("draws", set_last(position=0), APPENDED, "the operation is 'Overwrite' and should be"),
    ],
)  # fmt: skip
def test_a_rewritten_row(copy: Path, table: str, change: Change, link: str, words: str) -> None:
    rewrite(copy, table, change)
    assert words in said(copy, link)
    assert said(copy, APPENDED)


@pytest.fixture(scope="module")
def run_again(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With focus and update of round 2 run again: policy 2 is of take 1."""
    run = Path(shutil.copytree(finished.run, tmp_path_factory.mktemp("rerun") / "run"))
    config = run.with_name("rerun.toml")
    config.write_text(finished.config.read_text().replace(str(finished.run), str(run)))
    with opened(str(config)) as work:
        stages.focus.fn(work, work.policy(1), True)
        stages.update.fn(work, work.policy(1))
    assert broken(run) == {}
    return run


@pytest.fixture
def rerun(run_again: Path, tmp_path: Path) -> Path:
    """That run, to be tampered with."""
    return Path(shutil.copytree(run_again, tmp_path / "rerun"))


@pytest.mark.parametrize(
    ("table", "change", "words"),
    [
        ("reruns", lambda rows: rows.clear(), "focus of round 2: it has rows of take 1, which no"),
        ("reruns", lambda rows: rows.__delitem__(slice(1, None)),
         "update of round 2: it has rows of take 1, which no row of reruns began"),
        ("reruns", set_last(sequence=9), "sequence is 9 and should be"),
        ("reruns", set_last(new_take=2), "new_take is 2 and should be 1"),
        ("reruns", set_last(superseded=1), "number of rows it superseded is"),
        ("reruns", set_last(policy_version=1, stale=["update"]),
         "update of round 2 was computed from rows of evaluate that take 1 superseded; run update"),
        ("selections", lambda rows: rows.pop(-1), None),
        ("selections", lambda rows: [r for r in rows if not r["take"]][-1].update(take=7),
         "focus of round 2, take 1: the number of rows it superseded is"),
    ],
)  # fmt: skip
def test_a_tampered_rerun(rerun: Path, table: str, change: Change, words: str | None) -> None:
    rewrite(rerun, table, change)
    assert said(rerun, APPENDED)
    assert words in said(rerun, TAKES) if words else said(rerun, SELECTIONS)


def test_rewritten_log_probs(copy: Path) -> None:
    def teacher(rows: Rows) -> None:
        rows[-1]["teacher_logprobs"][0] = rows[-1]["topk_logprobs"][0][0] = -0.5

    rewrite(copy, "teacher_scores", teacher)
    assert "the probability of top-k and tail is" in said(copy, SCORES)


def test_a_trainer_that_was_not_the_sampler(copy: Path) -> None:
    def change(rows: Rows) -> None:
        rows[-1]["student_logprobs"][0] -= 1.0

    rewrite(copy, "trained_rollouts", change)
    assert "|student - sampling| at step 0 is " in said(copy, STEPS)


def test_a_log_prob_that_its_top_k_contradicts(copy: Path) -> None:
    def change(rows: Rows) -> None:
        rows[-1]["topk_token_ids"][0][0] = answer_of[rows[-1]["rollout_id"]]
        rows[-1]["teacher_logprobs"][0] = rows[-1]["topk_logprobs"][0][0] - 1.0

    rows = Run.open(copy).rollouts().select("rollout_id", "completion_token_ids").collect()
    answer_of = {name: ids[0] for name, ids in rows.iter_rows()}
    rewrite(copy, "teacher_scores", change)
    assert ", token 0: its log-prob is " in said(copy, SCORES)


@pytest.mark.parametrize(
    ("table", "link"),
    [("rollouts", ROLLOUTS), ("teacher_scores", SCORES), ("selections", STEPS),
     ("examples", EXAMPLES), ("updates", STEPS)],
)  # fmt: skip
def test_a_row_that_is_there_twice(copy: Path, table: str, link: str) -> None:
    append_again(copy, table, lambda row: None)
    assert "the number of its rows is 2 and should be 1" in said(copy, link)
    assert "the run that appended is None and should be" in said(copy, APPENDED)


def test_rows_of_a_policy_that_nothing_committed(copy: Path) -> None:
    append_again(copy, "draws", lambda row: row.update(policy_version=7))
    assert said(copy, ATTEMPTS) == "draws: it has rows of policy 7, which nothing committed"


def test_a_checkpoint_that_no_row_names(copy: Path) -> None:
    shutil.copytree(copy / "policies" / "v2", copy / "policies" / "v9")
    assert "v9: no row of updates names this checkpoint" in said(copy, ATTEMPTS)


def test_a_removed_tag(copy: Path) -> None:
    lance.dataset(copy / "tables" / "draws.lance").tags.delete("round-1")
    assert broken(copy) == {APPENDED: "draws.lance: the tag round-1 is missing"}


def test_a_table_that_was_made_anew(copy: Path) -> None:
    uri = copy / "tables" / "draws.lance"
    rows = lance.dataset(uri).to_table()
    shutil.rmtree(uri)
    lance.write_dataset(rows, uri)
    assert "number of rows it was made with is 16 and should be 0" in said(copy, APPENDED)


def test_a_consistently_edited_example_loses_its_rollouts(copy: Path) -> None:
    def change(rows: Rows) -> None:
        row = rows[-1]
        row["query"] = "a cat"
        span = Span(row["span_start"], row["span_end"])
        row["example_id"] = make_example_id(row["video_path"], "a cat", span)

    used = set(Run.open(copy).rollouts().collect()["example_id"])
    rewrite(copy, "examples", lambda rows: rows.sort(key=lambda r: r["example_id"] in used))
    rewrite(copy, "examples", change)
    assert said(copy, EXAMPLES) == "" and "there is no example" in said(copy, ANSWERS)


# --- videos and models ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["replaced", "missing"])
def test_a_video_that_is_not_the_same(finished: Finished, copy: Path, how: str) -> None:
    run = Run.open(copy)
    used = run.trajectories().filter("trained").select("video_path").collect().to_series()
    paths = sorted(set(used))
    file = finished.world.videos / paths[0]
    content = file.read_bytes()
    try:
        if how == "replaced":
            file.write_bytes((finished.world.videos / paths[1]).read_bytes())
        else:
            file.unlink()
        found = said(copy, VIDEOS, Depth())
    finally:
        file.write_bytes(content)
    assert paths[0] in found and found.startswith("rollouts, v")
    assert ("pixel_hash was" if how == "replaced" else "there is no file") in found
    assert said(copy, VIDEOS, Depth()) == ""


def test_another_teacher_in_the_folder_that_the_config_names(
    finished: Finished, copy: Path
) -> None:
    file = finished.models / "teacher" / "model.safetensors"
    content = file.read_bytes()
    try:
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert "updates, policy_version 1: teacher_hash is '" in said(copy, SCORES)
    finally:
        file.write_bytes(content)


@pytest.mark.parametrize(
    ("column", "words"),
    [("logprob_bound", "|student - sampling| at step 0"),
     ("mean_logprob_bound", "mean |student - sampling| at step 0")],
)  # fmt: skip
def test_the_first_step_is_held_against_the_bounds_of_its_row(
    copy: Path, column: str, words: str
) -> None:
    rewrite(copy, "updates", set_all(**{column: 1e-12}))
    found = said(copy, STEPS)
    assert found.startswith("trained_rollouts") and f": {words} is " in found
    assert "at most 1e-12" in found


def test_deep_finds_a_log_prob_that_was_not_sampled(copy: Path) -> None:
    def change(rows: Rows) -> None:
        for row in rows:
            row["sampling_logprobs"][0] -= 1e-3

    rewrite(copy, "rollouts", change)
    again = "sampled again"
    found = said(copy, again, Depth(videos=0.0, deep=0.1, seed=1))
    assert "sampling_logprobs[0] was -" in found and "--tolerance" in found
    assert said(copy, again, Depth(videos=0.0, deep=0.1, seed=1, tolerance=0.01)) == ""


def test_what_another_engine_sampled_is_scored_by_the_trainer(copy: Path) -> None:
    rewrite(copy, "rollouts", set_all(engine_version="of another machine"))
    sampled = dict(chain(Depth(videos=0.0, deep=1.0)))["sampled again"]
    assert "largest difference" in sampled(Run.open(copy)).notes[0]
    rewrite(copy, "rollouts", lambda rows: rows[-1]["sampling_logprobs"].__setitem__(0, -9.0))
    assert "[0] was -9.0" in said(copy, "sampled again", Depth(videos=0.0, deep=1.0))


def test_deep_finds_tokens_that_were_not_sampled(copy: Path) -> None:
    def change(rows: Rows) -> None:
        for row in rows:
            row["completion_token_ids"][0] += 1

    rewrite(copy, "rollouts", change)
    assert "completion_token_ids was (" in said(copy, "sampled again", Depth(0.0, 0.1))


def test_deep_finds_a_score_that_the_teacher_did_not_give(copy: Path) -> None:
    def change(rows: Rows) -> None:
        for row in rows:
            row["teacher_logprobs"][-1] -= 1e-3

    rewrite(copy, "teacher_scores", change)
    assert "teacher_logprobs[" in said(copy, "scored again", Depth(0.0, 0.1))


def test_answers_that_an_older_format_read_otherwise_are_counted(copy: Path) -> None:
    """Its program is not here to read them again; what it made of the spans is held."""
    rewrite(copy, "rollouts", set_last(text="[1, 2]"))
    file = copy / "tables" / "format.json"
    content = json.loads(file.read_text())
    later = {"migrations": [{"from": SCHEMA_VERSION - 1, "at": "2100-01-01T00:00:00+00:00"}]}
    file.write_text(json.dumps(content | later))
    checked = dict(chain(STORED))[ANSWERS](Run.open(copy))
    assert "1 that a program of an older format read" in checked.notes[0]
    rewrite(copy, "rollouts", set_last(student_iou=0.123))
    assert "student_iou is 0.123" in said(copy, ANSWERS)
