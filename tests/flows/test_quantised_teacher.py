"""Rounds with a teacher in FP8 or int4: told in the tables, never mixed with another, audited."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows import stages
from flows.audit.walk import Depth, audit
from flows.stage.prepare import opened
from opd_core.config.load import config_hash, load_config
from opd_core.scoring.score_key import quantised_in
from opd_core.types import Rollout, TeacherScore, VideoOPDError
from storage.runs.run import Run
from tests.flows.conftest import WriteConfig
from tests.flows.kill_points import run_without_server

SMALL = {"rollout.examples_per_round": 5, "evaluate.max_examples": 1,
         "update.objective": "exact_reverse_kl"}  # fmt: skip


def scores(run: Path) -> dict[str, TeacherScore]:
    return {s.rollout_id: s for s in Run.open(run).read("teacher_scores", TeacherScore)}


def sound(run: Path) -> None:
    for verdict in audit(Run.open(run), Depth(1.0, 1.0, None, 0)):
        assert verdict.broken is None, verdict


@pytest.fixture(scope="module")
def unquantised(write_config: WriteConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unquantised")
    run_without_server(str(write_config(folder, SMALL)), 1)
    return folder / "run"


@pytest.mark.parametrize("how", ["fp8", "int4"])
@pytest.mark.in_turn(always=["fp8"])
def test_a_round_tells_it_takes_nothing_from_an_unquantised_one_and_is_done_again_alike(
    how: str, write_config: WriteConfig, unquantised: Path, tmp_path: Path
) -> None:
    caches = {"score.cache": str(unquantised), "teacher.cache": str(unquantised)}
    config = write_config(tmp_path, SMALL | caches | {"teacher.quantise": how})
    run_without_server(str(config), 1)
    ours, theirs = scores(tmp_path / "run"), scores(unquantised)
    assert ours.keys() == theirs.keys() and ours, "the same rollouts"
    for name, score in ours.items():
        assert quantised_in(score.scorer) == how and quantised_in(theirs[name].scorer) == "none"
        assert score.reused_from is None and score.content_hash != theirs[name].content_hash
    off = [
        abs(a - b)
        for name in ours
        for a, b in zip(ours[name].teacher_logprobs, theirs[name].teacher_logprobs, strict=True)
    ]
    assert 1e-4 < max(off) < 1.0
    asked = [
        {(p["question_hash"], p["reused_from"]) for p in Run.open(run).teacher_predictions()
         .select("question_hash", "reused_from").collect().to_dicts()}
        for run in (tmp_path / "run", unquantised)
    ]  # fmt: skip
    assert all(len(one) == 1 for one in asked) and asked[0] != asked[1]
    assert {reused for one in asked for _, reused in one} == {None}
    sound(tmp_path / "run")


def test_a_round_is_scored_in_one_way(write_config: WriteConfig, tmp_path: Path) -> None:
    config = str(write_config(tmp_path, SMALL))
    run_without_server(config, 1)
    with opened(config, ["teacher.quantise=fp8"]) as work:
        first = work.run.policy(0)
        told = "has scores with teacher.quantise = 'none', and the config says 'fp8'; put.*--force"
        with pytest.raises(VideoOPDError, match=told):
            stages.score(work, first)
        stages.validate(work, first)
        stages.score(work, first, force=True)
    run = Run.open(tmp_path / "run")
    assert {quantised_in(s.scorer) for s in run.read("teacher_scores", TeacherScore)} == {"fp8"}


@pytest.mark.in_turn
def test_answers_of_a_quantised_teacher_are_trained_on_and_sampled_again(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    of_teacher = SMALL | {"rollout.source": "teacher", "focus.curriculum": "uniform"}
    for how in ("none", "fp8"):
        config = write_config(tmp_path / how, of_teacher | {"teacher.quantise": how})
        run_without_server(str(config), 1)
        sound(tmp_path / how / "run")
    whole, small = (
        {r.rollout_id: r.sampling_logprobs for r in run.read("rollouts", Rollout)}
        for run in (Run.open(tmp_path / how / "run") for how in ("none", "fp8"))
    )
    assert whole.keys() == small.keys() and whole != small


@pytest.mark.parametrize(("settings", "word"), [
    (["teacher.quantise=int4"], "'policy_gradient' takes the teacher's log-prob.*set teacher.q"),
    (["teacher.quantise=int4", "update.objective=unlikely_penalty"], "'unlikely_penalty' takes"),
    (["teacher.quantise=int4", "update.objective={ jsd = 1.0, policy_gradient = 0.1 }"],
     "'policy_gradient' takes"),
    (["teacher.quantise=fp8", "teacher.engine=vllm"], "not done by teacher.engine = 'vllm'; set"),
    (["teacher.quantise=fp4"], "'none', 'fp8' or 'int4'"),
])  # fmt: skip
def test_what_is_refused(
    settings: list[str], word: str, write_config: WriteConfig, tmp_path: Path
) -> None:
    config = write_config(tmp_path)
    with pytest.raises(VideoOPDError, match=word):
        load_config(config, settings)


def test_what_is_taken(write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    load_config(config, ["teacher.quantise=fp8"])
    for objective in ("exact_reverse_kl", "exact_forward_kl", "jsd", "grpo"):
        load_config(config, ["teacher.quantise=int4", f"update.objective={objective}"])


def test_a_config_that_does_not_quantise_has_the_hash_that_it_had(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    """Of a run that was begun before there was the setting, too."""
    config = load_config(write_config(tmp_path))
    content = config.model_dump(mode="json")
    assert "quantise" not in content["teacher"]
    assert load_config(tmp_path / "config.toml", ["teacher.quantise=none"]).hash == config.hash
    changed = load_config(tmp_path / "config.toml", ["teacher.quantise=fp8"])
    assert changed.hash != config.hash
    assert config_hash(changed.model_dump(mode="json")) == changed.hash
    assert type(config).model_validate_json(changed.to_json()) == changed
