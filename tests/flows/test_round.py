"""The round, end to end: what two rounds of the real command leave in the tables, and its refusals.

The first half reads one run of `videoopd run CONFIG --rounds 2`, made by a process of its own with
its Prefect server. The second half calls the same loop in this process, without a server.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from flows import stages
from flows.stage.prepare import Work, opened
from opd_core.config.load import load_config
from opd_core.types import (
    Evaluation,
    GroundingExample,
    Rollout,
    Selection,
    TeacherPrediction,
    TeacherScore,
    Update,
    VideoOPDError,
    make_rollout_id,
    make_seed,
)
from storage.runs.policies import read_manifest, weights_hash
from storage.runs.run import Run
from storage.stages import STAGES
from storage.tables.schemas import TABLES
from tests.flows.kill_points import run_without_server
from tests.stages_before import stages_before

FULL = {"update.objective": "exact_reverse_kl", "focus.top_k": 6}
RECORDS = {
    "examples": GroundingExample,
    "teacher_predictions": TeacherPrediction,
    "rollouts": Rollout,
    "teacher_scores": TeacherScore,
    "selections": Selection,
    "updates": Update,
    "evaluations": Evaluation,
}


@pytest.fixture(scope="module")
def two_rounds(
    command: Any, write_config: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The config, and what the command printed."""
    config = write_config(tmp_path_factory.mktemp("two-rounds"), FULL)
    done = command("run", config, "--rounds", "2")
    assert done.returncode == 0, done.stderr
    return config, done.stdout


@pytest.fixture(scope="module")
def run(two_rounds: tuple[Path, str]) -> Run:
    return Run.open(two_rounds[0].with_name("run"))


def rows(run: Run, name: str) -> list[Any]:
    return run.read(name, RECORDS[name])


def count(run: Run) -> dict[str, int]:
    return {name: run.tables.scan(name).collect().height for name in TABLES}


def policies(run: Run) -> list[Any]:
    return [run.policy(version) for version in range(run.current_policy().version + 1)]


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def largest_difference(a: Path, b: Path) -> float:
    ours, theirs = tensors(a), tensors(b)
    assert ours.keys() == theirs.keys()
    return max(float((ours[k].float() - theirs[k].float()).abs().max()) for k in ours)


# --- what two rounds of the real command leave ------------------------------------------------


def test_every_table_has_its_rows(run: Run) -> None:
    counts = count(run)
    drawn, scored = 2 * 10, 2 * 6 * 2
    assert counts["draws"] == drawn
    assert counts["rollouts"] == drawn * 2 == counts["selections"]
    assert counts["teacher_scores"] == scored, "only what focus can select is scored"
    assert sum(s.selected for s in rows(run, "selections")) == scored
    examples = set(run.draws().collect()["example_id"])
    assert counts["teacher_predictions"] == len(examples) * 2, "once an example, kept for ever"
    assert counts["evaluations"] == 3 * 5
    assert counts["updates"] == 2
    assert counts["quarantine"] == 0


def test_rollouts_are_named_seeded_and_stamped_by_the_policy_that_sampled(
    run: Run, two_rounds: tuple[Path, str]
) -> None:
    hashes = [policy.weights_hash for policy in policies(run)]
    assert len(set(hashes)) == 3
    seed = load_config(two_rounds[0]).run.seed
    for r in rows(run, "rollouts"):
        key = (r.policy_version, r.example_id, r.sample_index)
        assert r.rollout_id == make_rollout_id(*key) == f"v{key[0]}-{key[1]}-{key[2]}"
        assert r.seed == make_seed(seed, "rollout", *key)
        assert r.policy_hash == hashes[r.policy_version]
        assert r.policy_hash == weights_hash(run.policy(r.policy_version).path)
    for e in rows(run, "evaluations"):
        assert e.policy_hash == hashes[e.policy_version]


def test_tokens_and_log_probs_belong_together(run: Run) -> None:
    from transformers import AutoProcessor

    from opd_core.model.architectures import QWEN3_VL
    from opd_core.model.vocabulary import excluded_token_ids

    tokenizer = AutoProcessor.from_pretrained(run.policy(2).path).tokenizer
    excluded = set(excluded_token_ids(tokenizer, len(tokenizer), QWEN3_VL.placeholders))
    assert {tokenizer.convert_tokens_to_ids(t) for t in QWEN3_VL.placeholders} <= excluded
    rollouts = {r.rollout_id: r for r in rows(run, "rollouts")}
    for r in rollouts.values():
        assert 0 < len(r.completion_token_ids) == len(r.sampling_logprobs) <= 8
        assert all(math.isfinite(p) and p <= 0 for p in r.sampling_logprobs)
        assert not excluded & set(r.completion_token_ids)
        ended = r.completion_token_ids[-1] in tokenizer.convert_tokens_to_ids(
            ["<|im_end|>", "<|endoftext|>"]
        )
        assert r.finish_reason == ("stop" if ended else "length")
        assert len(r.frame_indices) == len(r.frame_timestamps) == 2 * r.grid_thw[0]
    for s in rows(run, "teacher_scores"):
        tokens = rollouts[s.rollout_id].completion_token_ids
        lists = (s.teacher_logprobs, s.topk_token_ids, s.topk_logprobs, s.tail_logprobs)
        assert {len(values) for values in lists} == {len(tokens)}
        for token, logprob, ids, top, tail in zip(tokens, *lists, strict=True):
            assert not excluded & set(ids)
            assert math.fsum(map(math.exp, (*top, tail))) == pytest.approx(1.0, abs=1e-5)
            if token in ids:
                assert top[ids.index(token)] == pytest.approx(logprob, abs=1e-6)


def test_updates_are_chained_and_their_checkpoints_traced(
    run: Run, two_rounds: tuple[Path, str]
) -> None:
    config_hash = load_config(two_rounds[0]).hash
    updates = sorted(rows(run, "updates"), key=lambda u: u.policy_version)
    chain = policies(run)
    for parent, child, u in zip(chain[:-1], chain[1:], updates, strict=True):
        assert (u.parent_version, u.parent_hash) == (parent.version, parent.weights_hash)
        assert (u.policy_version, u.policy_hash) == (child.version, child.weights_hash)
        manifest = read_manifest(child.path)
        assert manifest["weights_hash"] == weights_hash(child.path) == u.policy_hash
        assert manifest["parent_hash"] == parent.weights_hash
        assert manifest["config_hash"] == config_hash
        assert manifest["run_id"] == run.run_id
        assert manifest.keys() >= {"git_commit", "created_at"}
        trained_on = run.tables.scan("rollouts", manifest["table_versions"]["rollouts"])
        assert trained_on.collect()["policy_version"].max() == parent.version
        assert f"round-{child.version}" in tags(run)


def tags(run: Run) -> set[str]:
    import lance

    found = [
        set(lance.dataset(run.path / "tables" / f"{name}.lance").tags.list()) for name in TABLES
    ]
    return set.intersection(*found)


def test_checkpoints_load_as_any_checkpoint_does(run: Run) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = run.policy(2).path
    _, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    processor = AutoProcessor.from_pretrained(folder)
    base = AutoProcessor.from_pretrained(run.policy(0).path)
    assert processor.tokenizer.get_vocab() == base.tokenizer.get_vocab()
    assert processor.chat_template == base.chat_template
    assert processor.video_processor.to_dict() == base.video_processor.to_dict()


def test_the_steps_are_on_policy_and_counted_over_the_run(run: Run) -> None:
    import torch

    updates = sorted(rows(run, "updates"), key=lambda u: u.policy_version)
    rates = [step.learning_rate for u in updates for step in u.steps]
    per_round = len(updates[0].steps)
    assert per_round == len(updates[1].steps) >= 2
    warm = [min(1.0, (i + 1) / 4) for i in range(2 * per_round)]
    cool = [min(1.0, (1 - i / per_round) / 0.75) for i in range(per_round)] * 2
    assert min(cool) < 1.0
    wanted = [1e-4 * w * c for w, c in zip(warm, cool, strict=True)]
    assert rates == pytest.approx(wanted), "warmup over the run, cooldown in each round"
    for u in updates:
        assert u.mean_logprob_mismatch <= u.max_logprob_mismatch <= 1e-4
        assert (u.logprob_bound, u.mean_logprob_bound) == (1e-3, None)
        assert u.stopped_early is None
        assert (u.rollouts, u.objective) == (12, "exact_reverse_kl")
        first = u.steps[0]
        assert first.ratio_min == pytest.approx(1, abs=1e-4)
        assert first.ratio_max == pytest.approx(1, abs=1e-4)
        assert first.effective_sample_size == pytest.approx(1, abs=1e-6)
        assert sum(step.tokens for step in u.steps) == u.tokens
    saved = torch.load(
        run.path / "trainer" / run.current_policy().path.name / "optimizer.pt", weights_only=True
    )
    assert saved["steps_done"] == len(updates) * per_round
    done = {float(state["step"]) for state in saved["optimizer"]["state"].values()}
    assert done == {float(len(updates) * per_round)}, "the optimizer went on where it was"


def test_the_selection_is_the_largest_disagreement(run: Run) -> None:
    for version in (0, 1):
        mine = [s for s in rows(run, "selections") if s.policy_version == version]
        ranks = {s.example_id: s.rank for s in mine}
        taken = {s.example_id for s in mine if s.selected}
        assert sorted(ranks.values()) == list(range(10))
        assert taken == {e for e, rank in ranks.items() if rank < 6}
        by_rank = sorted({(s.rank, s.disagreement) for s in mine})
        assert all(a[1] >= b[1] for a, b in pairwise(by_rank))


def test_the_summary_says_what_the_tables_say(
    two_rounds: tuple[Path, str], run: Run, write_config: Any, tmp_path: Path
) -> None:
    """The same config in this process, number by number; the command's table has them too."""
    summary = run_without_server(str(write_config(tmp_path, FULL)), 2)
    assert [r.policy_version for r in summary.rounds] == [0, 1, 2]
    scores = {s.rollout_id: s for s in rows(run, "teacher_scores")}
    for found in summary.rounds:
        ious = [e.iou for e in rows(run, "evaluations") if e.policy_version == found.policy_version]
        assert found.eval_examples == len(ious) == 5
        assert found.miou == pytest.approx(sum(ious) / 5)
        assert found.r1_50 == pytest.approx(sum(iou > 0.5 for iou in ious) / 5)
        if found.policy_version == 0:
            continue
        sampled = [r for r in rows(run, "rollouts") if r.policy_version == found.policy_version - 1]
        gaps = [
            p - q
            for r in sampled
            if r.rollout_id in scores
            for p, q in zip(r.sampling_logprobs, scores[r.rollout_id].teacher_logprobs, strict=True)
        ]
        assert found.rollouts == len(sampled) == 20
        assert found.tokens == sum(len(r.completion_token_ids) for r in sampled)
        assert found.sampling_k1 == pytest.approx(sum(gaps) / len(gaps), rel=1e-6)
        assert found.teacher_passes_saved == 20 - 12
        assert f"{found.sampling_k1:.3f}" in two_rounds[1], "the command prints the same number"


def test_run_again_it_goes_on_with_round_three(
    run: Run, two_rounds: tuple[Path, str], command: Any, prefect_api: str
) -> None:
    before = count(run)
    done = command("run", two_rounds[0], server=prefect_api)
    assert done.returncode == 0, done.stderr
    assert run.current_policy().version == 3
    after = count(run)
    assert after["rollouts"] == before["rollouts"] + 20
    assert after["examples"] == before["examples"]
    assert {r.policy_version for r in rows(run, "rollouts")} == {0, 1, 2}


def test_stages_with_nothing_missing_append_nothing(two_rounds: tuple[Path, str]) -> None:
    with opened(str(two_rounds[0])) as work:
        before = work.run.tables.versions()
        for name in STAGES:
            summary = getattr(stages, name).fn(work, work.policy(0))
            assert summary.rows == 0, f"{name} appended {summary.rows} rows again"
        assert work.run.tables.versions() == before


# --- one stage at a time, and what it refuses --------------------------------------------------


def begin(work: Work, names: Sequence[str]) -> None:
    for name in names:
        getattr(stages, name).fn(work, work.policy())


def test_a_single_stage_does_what_is_missing_of_it(write_config: Any, tmp_path: Path) -> None:
    config = str(write_config(tmp_path, {"focus.curriculum": "uniform"}))
    with opened(config) as work:
        for name, needed in (("rollout", "begins it"), ("focus", "begins it"), ("update", "focus")):
            with pytest.raises(VideoOPDError, match=needed):
                begin(work, [name])
        begin(work, ["draw", "rollout"])
        with pytest.raises(VideoOPDError, match="no teacher score yet.*run the score stage"):
            begin(work, ["focus"])
        assert count(work.run)["rollouts"] == 20
        assert count(work.run)["selections"] == 0
        begin(work, ["score", "focus", "update"])
        assert work.policy().version == 1
        with pytest.raises(VideoOPDError, match="there is no policy 7 yet: .* from 0 to 1"):
            work.policy(7)


def test_a_teacher_that_is_the_student_scores_what_was_sampled(
    write_config: Any, models: dict[str, Path], tmp_path: Path
) -> None:
    settings = {"teacher.path": models["student"], "update.objective": "exact_reverse_kl"}
    summary = run_without_server(str(write_config(tmp_path, settings)))
    run = Run.open(tmp_path / "run")
    sampled = {r.rollout_id: r.sampling_logprobs for r in rows(run, "rollouts")}
    for score in rows(run, "teacher_scores"):
        assert score.teacher_logprobs == pytest.approx(sampled[score.rollout_id], abs=1e-5)
    assert abs(summary.rounds[-1].sampling_k1) < 1e-5
    (update,) = rows(run, "updates")
    assert abs(update.steps[0].loss) < 1e-6 and update.steps[0].loss > -1e-7
    assert update.steps[0].grad_norm < 1e-4


def test_rollouts_of_another_policy_are_refused(write_config: Any, tmp_path: Path) -> None:
    other = "f" * 64
    with opened(str(write_config(tmp_path))) as work:
        begin(work, stages_before("score"))
        one = rows(work.run, "rollouts")[0]
        foreign = replace(
            one, rollout_id=make_rollout_id(0, one.example_id, 9), sample_index=9, policy_hash=other
        )
        work.run.append("rollouts", [foreign], policy_version=0)
        begin(work, ["score", "focus"])
        with pytest.raises(VideoOPDError) as refused:
            begin(work, ["update"])
        assert other in str(refused.value) and work.policy().weights_hash in str(refused.value)
        assert foreign.rollout_id in str(refused.value)
        assert work.policy().version == 0


@pytest.mark.parametrize(
    ("given", "shift", "bound"),
    [(["update.max_logprob_mismatch=0.01"], 0.02, r"= 0\.01 \(as the config says"),
     ([], 5e-3, r"= 0\.001 \(more than rounding in float32")],
)  # fmt: skip
def test_a_student_that_is_not_the_sampler_is_refused(
    write_config: Any, tmp_path: Path, given: list[str], shift: float, bound: str
) -> None:
    """The right hash beside log-probs of something else: the first step notices."""
    with opened(str(write_config(tmp_path)), given) as work:
        begin(work, stages_before("score"))
        one = rows(work.run, "rollouts")[0]
        shifted = replace(
            one,
            rollout_id=make_rollout_id(0, one.example_id, 9),
            sample_index=9,
            sampling_logprobs=[p - shift for p in one.sampling_logprobs],
        )
        work.run.append("rollouts", [shifted], policy_version=0)
        # 20 rollouts of 10 examples; the shifted one has to be in the first step
        work = replace(work, config=load_config(
            tmp_path / "config.toml", [*given, "update.examples_per_step=10", "focus.top_k=10"]
        ))  # fmt: skip
        begin(work, ["score", "focus"])
        with pytest.raises(VideoOPDError, match=f"max_logprob_mismatch {bound}"):
            begin(work, ["update"])
        assert work.policy().version == 0


def test_max_policy_kl_ends_the_update_and_says_so(write_config: Any, tmp_path: Path) -> None:
    settings = {
        "update.learning_rate": 0.3,
        "update.warmup_steps": 0,
        "update.epochs": 3,
        "update.max_policy_kl": 0.01,
    }
    summary = run_without_server(str(write_config(tmp_path, settings)))
    (update,) = rows(Run.open(tmp_path / "run"), "updates")
    assert "update.max_policy_kl = 0.01" in update.stopped_early
    assert 1 <= len(update.steps) < 9
    assert any(update.stopped_early in note for note in summary.rounds[-1].notes)


# --- ways of training that must agree -----------------------------------------------------------


@pytest.fixture(scope="module")
def trained(write_config: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`trained({...})`: checkpoint of an update on always the same rollouts, other settings."""
    config = write_config(tmp_path_factory.mktemp("trained"))
    with opened(str(config)) as work:
        begin(work, stages_before("update"))

    def train(name: str, *overrides: str) -> tuple[Path, Any]:
        from opd_core.update.rows import HeldRows, Trained
        from opd_core.update.student import update_student

        with opened(str(config)) as work:
            policy = work.policy()
            scores = {s.rollout_id: s for s in rows(work.run, "teacher_scores")}
            taken = {s.rollout_id for s in rows(work.run, "selections") if s.selected}
            answers: dict[str, list[Rollout]] = {}
            for r in rows(work.run, "rollouts"):
                if r.rollout_id in taken:
                    answers.setdefault(r.example_id, []).append(r)
            examples = {e.example_id: e for e in rows(work.run, "examples")}
            order = work.run.draws().collect().sort("position")["example_id"]
            items = [
                Trained(examples[i], tuple(answers[i]),
                        tuple(scores[r.rollout_id] for r in answers[i]))
                for i in order if i in answers
            ]  # fmt: skip
        staging = config.with_name(name)
        settings = load_config(config, overrides)
        return staging, update_student(settings, policy, HeldRows(items), staging)

    return train


SGD_LIKE = "update.learning_rate=1e-5"


@pytest.mark.parametrize("objective", ["policy_gradient", "exact_reverse_kl"])
def test_the_size_of_packs_changes_nothing(trained: Any, objective: str) -> None:
    settings = [SGD_LIKE, f'update.objective="{objective}"']
    large, of_large = trained(f"large-{objective}", *settings)
    small, of_small = trained(
        f"small-{objective}",
        *settings,
        "update.max_tokens_per_pack=64",
        "update.completion_rows_per_chunk=4",
    )
    assert largest_difference(large, small) <= 1e-6
    assert largest_difference(large, trained(f"again-{objective}", *settings)[0]) == 0.0
    for ours, theirs in zip(of_large.steps, of_small.steps, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, abs=1e-6)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-4)
        assert ours.tokens == theirs.tokens


def test_gradient_checkpointing_changes_nothing(trained: Any) -> None:
    plain, _ = trained("plain", SGD_LIKE)
    checkpointed, _ = trained("checkpointed", SGD_LIKE, "update.gradient_checkpointing=true")
    assert largest_difference(plain, checkpointed) <= 1e-6


@pytest.mark.parametrize("frozen", [True, False])
def test_freeze_vision_keeps_the_tower_bit_for_bit(
    trained: Any, models: dict[str, Path], frozen: bool
) -> None:
    folder, _ = trained(f"frozen-{frozen}", f"update.freeze_vision={str(frozen).lower()}")
    before, after = tensors(models["student"]), tensors(folder)
    moved = {k for k in before if not before[k].float().equal(after[k].float())}
    vision = {k for k in before if "visual" in k}
    assert vision and moved - vision, "the language model was trained"
    assert bool(moved & vision) is not frozen


def test_lora_trains_an_adapter_and_leaves_the_base(
    write_config: Any, models: dict[str, Path], tmp_path: Path
) -> None:
    base = weights_hash(models["student"])
    settings = {"update.lora.rank": 4, "update.learning_rate": 1e-2}
    run_without_server(str(write_config(tmp_path, settings)), 2)
    run = Run.open(tmp_path / "run")
    assert weights_hash(models["student"]) == base == run.policy(0).weights_hash
    hashes = {r.policy_version: r.policy_hash for r in rows(run, "rollouts")}
    assert hashes == {p.version: p.weights_hash for p in policies(run)[:2]}
    assert len({p.weights_hash for p in policies(run)}) == 3
    for version in (1, 2):
        folder = run.policy(version).path
        assert (folder / "adapter_model.safetensors").is_file()
        assert not (folder / "model.safetensors").exists()
        adapter = json.loads((folder / "adapter_config.json").read_text())
        assert adapter["r"] == 4
        assert Path(adapter["base_model_name_or_path"]) == models["student"].resolve()
    first, second = (tensors_of_adapter(run.policy(v).path) for v in (1, 2))
    assert first.keys() == second.keys() and not any("visual" in name for name in first)
    assert any(not first[name].equal(second[name]) for name in first)
    for update in rows(run, "updates"):
        assert update.max_logprob_mismatch <= 1e-4, "the next round samples with the adapter"
    with pytest.raises(VideoOPDError, match=r"no \[update.lora\]"):
        run_without_server(str(write_config(tmp_path)))


def tensors_of_adapter(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")
