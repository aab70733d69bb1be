"""A whole round with every objective and every source of answers, audited afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from flows.audit.walk import Depth, audit
from opd_core.config.load import load_config
from opd_core.tinyworld.world import World
from opd_core.types import VideoOPDError
from opd_core.update.continuation import OPTIMIZER_FILE
from storage.audit import links
from storage.audit.links import BrokenLink
from storage.runs.run import Run
from tests.flows.conftest import WriteConfig
from tests.flows.kill_points import run_without_server
from tests.storage.finished_run import rewrite
from tests.tiny_config import as_toml, tiny_settings

EVERYTHING = {"focus.curriculum": "uniform", "rollout.examples_per_round": 6}
WHOLE = {"score.hidden_states": True, "update.teacher_distribution": "hidden_states"}
CASES: dict[str, dict[str, Any]] = {
    "policy_gradient": {"update.max_advantage": 3.0, "update.skip_special_tokens": True},
    "unlikely_penalty": {"update.unlikely_penalty.below": 1e-3, "update.epochs": 2},
    "exact_forward_kl": {"update.entropy_weight": True},
    "jsd": {"update.jsd_beta": 0.3},
    "exact_reverse_kl": WHOLE,
    "student_topk_reverse_kl": {"update.student_topk": 4, **WHOLE},
    "grpo": {"rollout.rollouts_per_example": 4, "update.grpo.reference_kl": 0.1,
             "update.grpo.format_reward": 0.5},
    "sft": {"rollout.source": "truth", "rollout.rollouts_per_example": 1, "update.epochs": 3},
    "base": {"rollout.source": "base", "update.objective": "exact_reverse_kl"},
    "OP-FKD": {"rollout.source": "teacher", "update.objective": "exact_forward_kl"},
    "OP-RKD": {"rollout.source": "teacher", "update.objective": "exact_reverse_kl"},
}  # fmt: skip


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of all cases, side by side."""
    return tmp_path_factory.mktemp("objectives")


def config_of(shared: Path, write_config: WriteConfig, case: str) -> Path:
    """The config of a case, beside its run of one round."""
    folder = shared / case
    if not folder.exists():
        settings = {**EVERYTHING, "update.objective": case, **CASES[case]}
        run_without_server(str(write_config(folder, settings)), 1)
    return folder / "config.toml"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.in_turn(always=["exact_reverse_kl", "grpo"])
def test_a_round_and_its_audit(case: str, shared: Path, write_config: Any) -> None:
    config = config_of(shared, write_config, case)
    run = Run.open(config.with_name("run"))
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


def test_the_truth_is_trained_as_it_is_annotated(shared: Path, write_config: Any) -> None:
    run = Run.open(config_of(shared, write_config, "sft").with_name("run"))
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
    (["rollout.source=base"], "student's own answers"),
    (["rollout.source=base", "update.objective={ exact_reverse_kl = 1.0, grpo = 0.5 }"],
     "'grpo' is a gradient on the student's own answers"),
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


SUM = "{ exact_reverse_kl = 2.0, grpo = 0.5 }"


def _round_of_groups(folder: Path, world: World, *overrides: str) -> Run:
    """A round with 8 rollouts an example of the shipped models, whose answers hold spans: without
    spans no answer of a group is better than another, and GRPO has nothing to say."""
    settings = {
        "focus.curriculum": "uniform", "rollout.examples_per_round": 4,
        "rollout.rollouts_per_example": 8, "update.max_grad_norm": 1e9, "evaluate.max_examples": 1,
    }  # fmt: skip
    folder.mkdir()
    config = folder / "config.toml"
    config.write_text(as_toml(tiny_settings(folder / "run", world) | settings))
    run_without_server(str(config), 1, overrides)
    return Run.open(folder / "run")


@pytest.mark.in_turn
def test_a_weighted_sum_is_the_sum(tiny_world: World, tmp_path: Path) -> None:
    """The loss and the gradient of the first step, of both terms and of each alone."""
    losses, gradients = {}, {}
    for name in ("sum", "exact_reverse_kl", "grpo"):
        objective = SUM if name == "sum" else name
        run = _round_of_groups(
            tmp_path / name, tiny_world, f"update.objective={objective}", "update.max_steps=1"
        )
        (row,) = run.updates().collect().to_dicts()
        (step,) = row["steps"]
        losses[name] = step["loss"]
        saved = torch.load(run.path / "trainer" / "v1" / OPTIMIZER_FILE, weights_only=True)
        moments = saved["optimizer"]["state"].values()  # after one step, gradient * (1 - beta_1)
        gradients[name] = torch.cat([m["exp_avg"].flatten() for m in moments]) / 0.1
        assert float(gradients[name].norm()) == pytest.approx(step["grad_norm"], rel=1e-4)
    assert gradients["grpo"].norm() > 0.01, "some answers are better than others"
    assert losses["sum"] == pytest.approx(
        2.0 * losses["exact_reverse_kl"] + 0.5 * losses["grpo"], abs=1e-6
    )
    torch.testing.assert_close(
        gradients["sum"], 2.0 * gradients["exact_reverse_kl"] + 0.5 * gradients["grpo"],
        atol=1e-5, rtol=1e-4,
    )  # fmt: skip


def test_a_round_of_a_weighted_sum(tiny_world: World, tmp_path: Path) -> None:
    run = _round_of_groups(
        tmp_path / "sum", tiny_world, f"update.objective={SUM}", "update.epochs=2",
        "update.examples_per_step=2",
    )  # fmt: skip
    (row,) = run.updates().collect().to_dicts()
    assert row["objective"] == "2 exact_reverse_kl + 0.5 grpo" and row["uses_scores"]
    assert row["rollouts"] == 32 and row["max_logprob_mismatch"] < 1e-4
    first, *later = row["steps"]
    assert sum(step["rollouts"] for step in row["steps"]) == 2 * 32
    assert sum(step["tokens"] for step in row["steps"]) == 2 * row["tokens"]
    for name in ("ratio_min", "ratio_max", "effective_sample_size"):
        assert first[name] == pytest.approx(1.0, abs=1e-3), name
    assert first["policy_kl"] < 1e-6
    assert later and all(s["ratio_min"] < 1 < s["ratio_max"] for s in later)
    assert all(s["policy_kl"] > 0 and s["effective_sample_size"] < 1 for s in later)
    assert all(s["reverse_kl"] is not None for s in row["steps"])
    assert all(s["tis_weight_mean"] is s["tis_truncated"] is None for s in row["steps"])
    for verdict in audit(run, Depth(1.0, 1.0, None, 0)):
        assert verdict.broken is None, verdict


@pytest.fixture(scope="module")
def two_rounds(write_config: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Two rounds of answers of the policy itself, and of policy 0."""
    folder = tmp_path_factory.mktemp("sources")
    settings = {**EVERYTHING, "update.objective": "exact_reverse_kl", "update.epochs": 2}
    for source in ("student", "base"):
        config = write_config(folder / source, {**settings, "rollout.source": source})
        run_without_server(str(config), 2)
    return {source: Run.open(folder / source / "run") for source in ("student", "base")}


@pytest.mark.in_turn
def test_policy_0_answers_in_every_round(two_rounds: dict[str, Run]) -> None:
    """Its first round is the on-policy one; in the second the answers are still of policy 0, and no
    number compares them with the policy in training."""
    runs = two_rounds
    rows = {
        source: run.rollouts().sort("policy_version", "rollout_id").collect()
        for source, run in runs.items()
    }
    answers = ("rollout_id", "policy_hash", "completion_token_ids", "sampling_logprobs", "seed")
    first = {s: r.filter(pl.col("policy_version") == 0) for s, r in rows.items()}
    assert first["base"].select(answers).equals(first["student"].select(answers))
    weights = {s: r.updates().sort("policy_version").collect() for s, r in runs.items()}
    hashes = {s: w["policy_hash"].to_list() for s, w in weights.items()}
    assert hashes["base"][0] == hashes["student"][0]
    assert hashes["base"][1] != hashes["student"][1]

    second = {s: r.filter(pl.col("policy_version") == 1) for s, r in rows.items()}
    base_hash, trained_hash = weights["base"]["parent_hash"].to_list()
    assert set(second["base"]["policy_hash"]) == {base_hash}
    assert set(second["student"]["policy_hash"]) == {trained_hash}
    assert weights["base"]["max_logprob_mismatch"].to_list() == [None, None]
    apart = {source: _apart_at_step_0(run, version=1) for source, run in runs.items()}
    assert apart["student"] < 1e-4, "the trained policy itself has sampled"
    assert apart["base"] > 1e-3, "another policy has"
    for verdict in audit(runs["base"], Depth(1.0, 1.0, None, 0)):
        assert verdict.broken is None, verdict


def _apart_at_step_0(run: Run, version: int) -> float:
    """The largest |student - sampling| log-prob before any weight of that round has moved."""
    met = run.trained_rollouts().filter(
        (pl.col("policy_version") == version) & (pl.col("step") == 0)
    )
    both = met.join(run.rollouts(), on="rollout_id").select("student_logprobs", "sampling_logprobs")
    apart = both.explode("student_logprobs", "sampling_logprobs").select(
        (pl.col("student_logprobs") - pl.col("sampling_logprobs")).abs().max()
    )
    return float(apart.collect().item())


def test_answers_of_a_later_policy_that_call_themselves_the_bases_are_found(
    two_rounds: dict[str, Run], tmp_path: Path
) -> None:
    """True of round 1, whose policy is policy 0, and a lie in round 2."""
    run = Run.open(shutil.copytree(two_rounds["student"].path, tmp_path / "run"))

    def claim(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["answered_by"] = "base"

    rewrite(run.path, "rollouts", claim)
    with pytest.raises(BrokenLink, match="rollouts, v1-.*policy_hash"):
        links.rollouts(Run.open(run.path))
