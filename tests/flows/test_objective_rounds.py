"""A whole round with every objective and every source of answers, audited afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows.audit.walk import Depth, audit
from opd_core.config.load import load_config
from opd_core.types import VideoOPDError
from storage.runs.run import Run
from tests.flows.kill_points import run_without_server

EVERYTHING = {"focus.curriculum": "uniform", "rollout.examples_per_round": 6}
WHOLE = {"score.hidden_states": True, "update.teacher_distribution": "hidden_states"}
CASES: dict[str, dict[str, Any]] = {
    "policy_gradient": {"update.max_advantage": 3.0, "update.skip_special_tokens": True},
    "exact_forward_kl": {"update.entropy_weight": True},
    "jsd": {"update.jsd_beta": 0.3},
    "exact_reverse_kl": WHOLE,
    "student_topk_reverse_kl": {"update.student_topk": 4, **WHOLE},
    "grpo": {"rollout.rollouts_per_example": 4, "update.grpo.reference_kl": 0.1,
             "update.grpo.format_reward": 0.5},
    "sft": {"rollout.source": "truth", "rollout.rollouts_per_example": 1},
    "OP-FKD": {"rollout.source": "teacher", "update.objective": "exact_forward_kl"},
    "OP-RKD": {"rollout.source": "teacher", "update.objective": "exact_reverse_kl"},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_round_and_its_audit(case: str, write_config: Any, tmp_path: Path) -> None:
    config = write_config(tmp_path, {**EVERYTHING, "update.objective": case, **CASES[case]})
    run_without_server(str(config), 1)
    run = Run.open(tmp_path / "run")
    (update,) = run.updates().collect().to_dicts()
    assert update["rollouts"] > 0 and update["policy_hash"] != update["parent_hash"]
    loaded = load_config(config)
    scores = run.teacher_scores().select(pl.len()).collect().item()
    assert bool(scores) == loaded.needs_teacher_scores == update["uses_scores"]
    rollouts = run.rollouts().collect()
    assert set(rollouts["answered_by"]) == {loaded.rollout.source}
    steps = update["steps"]
    if loaded.rollout.source == "student":
        assert update["max_logprob_mismatch"] < 1e-4
        assert all(0 <= step["policy_kl"] < 0.1 for step in steps)
    else:
        assert update["max_logprob_mismatch"] is None
        assert all(step["policy_kl"] is None and step["reverse_kl"] is None for step in steps)
    assert run.tokens().collect().height == rollouts["completion_token_ids"].list.len().sum()
    for verdict in audit(run, Depth(1.0, 1.0, None, 0)):
        assert verdict.broken is None, verdict


def test_the_truth_is_trained_as_it_is_annotated(write_config: Any, tmp_path: Path) -> None:
    config = write_config(
        tmp_path, {**EVERYTHING, "update.objective": "sft", **CASES["sft"], "update.epochs": 3}
    )
    run_without_server(str(config), 1)
    run = Run.open(tmp_path / "run")
    rows = run.trajectories().select("text", "span_start", "span_end", "student_iou").collect()
    for text, start, end, iou in rows.iter_rows():
        assert f"{start:.1f} - {end:.1f}" in text and iou > 0.9
    assert run.teacher_predictions().collect().is_empty(), "nobody asked the teacher"
    losses = [s["loss"] for s in run.updates().collect()["steps"][0]]
    assert losses[-1] < losses[0], "three passes over six answers bring their loss down"


def test_a_round_in_words_of_its_own(write_config: Any, tmp_path: Path) -> None:
    own = [
        "prompt.text=When does '{query}' happen? Say: from START to END.",
        r"prompt.reader=from (?P<start>\S+) to (?P<end>\S+)",
        "prompt.answer=from {start:.1f} to {end:.1f}",
    ]
    settings = {**EVERYTHING, "update.objective": "sft", **CASES["sft"]}
    run_without_server(str(write_config(tmp_path, settings)), 1, own)
    run = Run.open(tmp_path / "run")
    rows = run.trajectories().select("text", "predicted_start", "predicted_end", "student_iou")
    for text, start, end, iou in rows.collect().iter_rows():
        assert text == f"from {start:.1f} to {end:.1f}" and iou > 0.9
    for verdict in audit(run, Depth(1.0, 1.0, None, 0)):
        assert verdict.broken is None, verdict


@pytest.mark.parametrize(("settings", "word"), [
    (["update.objective=gpro"], "did you mean 'grpo'"),
    (["update.objective={}"], "at least one"),
    (["update.objective=grpo", "rollout.rollouts_per_example=1"], "rollouts_per_example = 8"),
    (["update.objective=grpo", "focus.unit=rollout"], "focus.unit"),
    (["rollout.source=teacher"], "student's own answers"),
    (["rollout.source=truth", "update.objective=sft"], "rollouts_per_example = 1"),
    (["update.objective=student_topk_reverse_kl"], "hidden_states"),
    (["update.objective=jsd", "score.teacher_topk=0"], "teacher_topk = 32"),
])  # fmt: skip
def test_what_does_not_fit_together_is_refused(
    settings: list[str], word: str, write_config: Any, tmp_path: Path
) -> None:
    config = write_config(tmp_path)
    with pytest.raises(VideoOPDError, match=word):
        load_config(config, settings)


def test_a_weighted_sum_is_the_sum(write_config: Any, tmp_path: Path) -> None:
    """The loss of the first step, before any weight moved, of both terms and of each alone."""
    losses = {}
    for name, objective in {
        "both": "{ policy_gradient = 2.0, grpo = 0.5 }",
        "policy_gradient": "policy_gradient",
        "grpo": "grpo",
    }.items():
        config = write_config(tmp_path / name, EVERYTHING)
        run_without_server(str(config), 1, [f"update.objective={objective}"])
        (row,) = Run.open(tmp_path / name / "run").updates().collect().to_dicts()
        losses[name] = row["steps"][0]["loss"]
    assert losses["both"] == pytest.approx(
        2.0 * losses["policy_gradient"] + 0.5 * losses["grpo"], abs=1e-6
    )
