"""What was scored once is copied: within a round, from another round, from another run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows.audit.walk import Depth, audit
from flows.stage.prepare import opened
from opd_core.config.load import load_config
from opd_core.model import tree_model
from opd_core.scoring import trees as scoring
from opd_core.tinyworld.world import World
from opd_core.types import GroundingExample, Policy, Rollout, TeacherScore, VideoOPDError
from storage.asking.contents import contents, differences
from storage.runs.run import Run
from tests.flows.kill_points import run_without_server
from tests.storage.finished_run import rewrite
from tests.tiny_config import as_toml, tiny_settings

SCORES = "scores are the update's teacher's"
FEW_WORDS = {
    "rollout.examples_per_round": 100,  # all of them, each round
    "rollout.max_queries_per_video": 2,
    "rollout.rollouts_per_example": 3,
    "rollout.max_new_tokens": 6,  # answers differ from their first number on
    "focus.top_k": 4,
    "focus.curriculum": "uniform",
    "update.learning_rate": 1e-6,
    "evaluate.max_examples": 1,
    "score.teacher_entropy": True,
}
TINY = {"rollout.examples_per_round": 5, "evaluate.max_examples": 1}
NUMBERS = ("teacher_logprobs", "topk_token_ids", "topk_logprobs", "tail_logprobs",
           "teacher_entropies", "content_hash", "scorer")  # fmt: skip


def scores(run: Path) -> list[TeacherScore]:
    return Run.open(run).read("teacher_scores", TeacherScore)


def numbers(score: TeacherScore) -> tuple[Any, ...]:
    return tuple(getattr(score, name) for name in NUMBERS)


def broken(run: Path) -> list[str]:
    verdicts = audit(Run.open(run), Depth(videos=0.0, deep=1.0))
    return [f"{v.link}: {v.broken}" for v in verdicts if v.broken]


@pytest.fixture(scope="module")
def few_words(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two rounds whose answers often say the same."""
    folder = tmp_path_factory.mktemp("few-words")
    config = folder / "tiny.toml"
    train = folder / "train.jsonl"
    train.write_text("\n".join(tiny_world.train.read_text().splitlines()[:12]))
    settings = FEW_WORDS | {"data.train": str(train)}
    config.write_text(as_toml(tiny_settings(folder / "run", tiny_world) | settings))
    summary = run_without_server(str(config), 2)
    for made, number in zip(summary.rounds[1:], (1, 2), strict=True):
        (note,) = (n for n in made.notes if n.startswith("score: "))
        mine = [s for s in scores(folder / "run") if s.policy_version == number - 1]
        reused = sum(s.reused_from is not None for s in mine)
        assert f"score: {reused:,} of {len(mine):,} scores were known before (" in note
    return folder / "run"


def test_the_same_words_are_scored_once(few_words: Path) -> None:
    run = Run.open(few_words)
    examples = {r.rollout_id: r.example_id for r in run.read("rollouts", Rollout)}
    computed: dict[tuple[str, str], TeacherScore] = {}
    copied = {0: 0, 1: 0}
    across = 0
    for score in scores(few_words):
        if score.reused_from is None:
            key = (examples[score.rollout_id], score.content_hash)
            assert key not in computed, "no content is computed twice"
            computed[key] = score
    by_id = {s.rollout_id: s for s in computed.values()}
    for score in scores(few_words):
        if score.reused_from is None:
            continue
        run_id, origin = score.reused_from.split("/")
        assert run_id == run.run_id
        assert numbers(by_id[origin]) == numbers(score) and score.seconds == 0.0
        copied[score.policy_version] += 1
        across += by_id[origin].policy_version != score.policy_version
    assert min(copied.values()) > 0, "twins in the first round"
    assert across > 0, "the second round took some of the first's"


def test_copies_are_what_the_teacher_would_have_said(few_words: Path) -> None:
    config = load_config(few_words.with_name("tiny.toml"))
    run = Run.open(few_words)
    rollouts = {r.rollout_id: r for r in run.read("rollouts", Rollout)}
    examples = {e.example_id: e for e in run.read("examples", GroundingExample)}
    copies = [s for s in scores(few_words) if s.reused_from]
    teacher = Policy(0, config.teacher.path, copies[0].teacher_hash)
    for score in copies[:: max(1, len(copies) // 6)]:
        rollout = rollouts[score.rollout_id]
        work = [(examples[rollout.example_id], [rollout])]
        ((fresh,),) = (batch.records for batch in scoring.score_rollouts(config, teacher, work))
        assert fresh.content_hash == score.content_hash
        assert fresh.teacher_logprobs == pytest.approx(score.teacher_logprobs, abs=1e-4)


def test_an_audit_follows_copies_to_what_was_computed(few_words: Path) -> None:
    assert broken(few_words) == []
    verdicts = {v.link: v for v in audit(Run.open(few_words), Depth(videos=0.0))}
    (note,) = (n for n in verdicts[SCORES].checked.notes if "copies" in n)  # type: ignore[union-attr]
    assert note.endswith("are copies of others in this run")


@pytest.mark.parametrize("column", ["teacher_logprobs", "content_hash", "reused_from"])
def test_an_audit_finds_a_copy_that_is_none(few_words: Path, tmp_path: Path, column: str) -> None:
    copy = Path(shutil.copytree(few_words, tmp_path / "run"))
    changed: Callable[[dict[str, Any]], Any] = {
        "teacher_logprobs": lambda row: [p - 0.01 for p in row[column]],
        "content_hash": lambda row: "0" * 32,
        "reused_from": lambda row: row[column] + "0",
    }[column]

    def change(rows: list[dict[str, Any]]) -> None:
        row = next(r for r in rows if r["reused_from"])
        row[column] = changed(row)
        for name in ("topk_token_ids", "topk_logprobs", "tail_logprobs"):
            row[name] = None

    rewrite(copy, "teacher_scores", change)
    verdicts = {v.link: v.broken for v in audit(Run.open(copy), Depth(videos=0.0))}
    found = verdicts[SCORES]
    assert found and ("no computed score" if column == "reused_from" else column) in found


@pytest.mark.in_turn
def test_killed_while_scoring_it_ends_with_the_same_rows(
    tiny_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Round 2, which copies from round 1, is killed after each append of its score stage."""
    monkeypatch.setattr("flows.stage.score_cache.ROWS_AT_ONCE", 5)
    settings = FEW_WORDS | {
        "rollout.examples_per_round": 12, "storage.flush_seconds": 0, "score.prompts_per_batch": 4
    }  # fmt: skip
    whole = tiny_config(settings | {"run.path": str(tmp_path / "whole")}, "whole.toml")
    run_without_server(str(whole), 2)
    killed = tiny_config(settings | {"run.path": str(tmp_path / "killed")}, "killed.toml")

    class Killed(Exception):
        pass

    original, attempts = Run.append, 0

    def append(self: Run, name: str, *rest: Any, **named: Any) -> int:
        added = original(self, name, *rest, **named)
        if name == "teacher_scores" and added:
            raise Killed
        return added

    monkeypatch.setattr(Run, "append", append)
    while True:
        with opened(str(killed)) as work:
            if work.run.current_policy().version == 2:
                break
        try:
            run_without_server(str(killed), 1)
        except Killed:
            attempts += 1
            assert attempts < 60
    assert attempts >= 4, "it was killed in both rounds, more than once"
    ours, theirs = (contents(Run.open(tmp_path / folder)) for folder in ("killed", "whole"))
    assert differences(ours, theirs) == []
    assert any(row["reused_from"] for row in ours["teacher_scores"])
    hashes = [Run.open(tmp_path / f).policy(2).weights_hash for f in ("killed", "whole")]
    assert hashes[0] == hashes[1]


@pytest.mark.in_turn
def test_another_runs_scores_need_no_teacher(
    write_config: Any, tmp_path: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write_config(tmp_path / "first", TINY)
    run_without_server(str(first), 1)
    cached = {"score.cache": "../first/run"}
    second = write_config(tmp_path / "second", TINY | cached)
    load = tree_model.load_model
    loaded: list[Path] = []

    def watched(folder: Path, *rest: Any) -> Any:
        loaded.append(folder)
        return load(folder, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(tree_model, "load_model", watched)
        summary = run_without_server(str(second), 1)
    assert loaded.count(models["teacher"]) == 1, "by validate; score would have loaded it again"
    ours, theirs = scores(tmp_path / "second" / "run"), scores(tmp_path / "first" / "run")
    assert {s.rollout_id: numbers(s) for s in ours} == {s.rollout_id: numbers(s) for s in theirs}
    origin = Run.open(tmp_path / "first" / "run").run_id
    assert {s.reused_from for s in ours} == {f"{origin}/{s.rollout_id}" for s in theirs}
    assert f"score: {len(ours)} of {len(ours)} scores were known before (100.0%)" in (
        summary.rounds[-1].notes
    )
    policies = [Run.open(tmp_path / f / "run").policy(1).weights_hash for f in ("first", "second")]
    assert policies[0] == policies[1], "trained on the same numbers"
    assert broken(tmp_path / "second" / "run") == []
    copy = Path(shutil.copytree(tmp_path / "second" / "run", tmp_path / "copy"))

    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["teacher_logprobs"][0] -= 0.01

    rewrite(copy, "teacher_scores", change)
    assert any("scored again" in b and "teacher_logprobs[0]" in b for b in broken(copy))
    # Another scorer is another content: nothing is found, and the names say the first run.
    third = write_config(tmp_path / "third", TINY | cached | {"score.teacher_topk": 8})
    run_without_server(str(third), 1)
    assert all(s.reused_from is None for s in scores(tmp_path / "third" / "run"))
    # A chain of caches names the row that was computed.
    fourth = write_config(tmp_path / "fourth", TINY | {"score.cache": "../second/run"})
    run_without_server(str(fourth), 1)
    found = {s.reused_from for s in scores(tmp_path / "fourth" / "run")}
    assert found == {f"{origin}/{s.rollout_id}" for s in theirs}


@pytest.mark.in_turn
def test_a_copy_keeps_its_hidden_states(write_config: Any, tmp_path: Path) -> None:
    kept = TINY | {"score.hidden_states": True}
    run_without_server(str(write_config(tmp_path / "first", kept)), 1)
    second = write_config(tmp_path / "second", kept | {"score.cache": "../first/run"})
    run_without_server(str(second), 1)
    ours, theirs = (
        Run.open(tmp_path / f / "run").teacher_scores().sort("rollout_id")
        .select("rollout_id", "hidden_states").collect() for f in ("second", "first")
    )  # fmt: skip
    assert ours.equals(theirs) and ours["hidden_states"].null_count() == 0
    reused = Run.open(tmp_path / "second" / "run").teacher_scores()
    assert reused.filter(pl.col("reused_from").is_null()).collect().is_empty()


def test_a_cache_that_is_no_run(write_config: Any, tmp_path: Path) -> None:
    config = write_config(tmp_path, TINY | {"score.cache": "nowhere"})
    with pytest.raises(VideoOPDError, match=r"^score\.cache: .*nowhere is no run .*; give the"):
        run_without_server(str(config), 1)
