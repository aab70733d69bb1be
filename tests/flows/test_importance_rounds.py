"""Importance weights in whole updates: rollouts as another engine would have given them.

The rollouts are real ones of this trainer's engine, whose log-probs are therefore those of pi_v, an
independent source of what the update has to find out itself. What the other engine says, mu, is
those plus noise.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flows import stages
from flows.stage.prepare import opened
from opd_core.config.load import load_config
from opd_core.types import (
    Draw,
    GroundingExample,
    Rollout,
    Selection,
    TeacherScore,
    VideoOPDError,
    make_seed,
)
from opd_core.update.rows import HeldRows, Trained
from opd_core.update.student import UpdateResult, update_student
from tests.known import known
from tests.stages_before import stages_before

Noise = Callable[[str, int], float]
"""(rollout id, position) -> mu - pi_v, nats."""


def noisy(rollout_id: str, position: int) -> float:
    return random.Random(make_seed(0, rollout_id, position, "", 0)).uniform(-0.3, 0.3)


class Round:
    """A round up to the update, which can be done again with other settings and engines."""

    def __init__(self, config: Path) -> None:
        self.config = config
        with opened(str(config)) as work:
            policy = work.policy()
            for name in stages_before("update"):
                getattr(stages, name).fn(work, policy)
            run = work.run
            self.parent = policy
            self.scores = {s.rollout_id: s for s in run.read("teacher_scores", TeacherScore)}
            taken = {s.rollout_id for s in run.read("selections", Selection) if s.selected}
            # Untrained models find no span; with these IoUs GRPO has something to compare.
            self.rollouts = [
                replace(r, student_iou=(i % 3) / 2)
                for i, r in enumerate(run.read("rollouts", Rollout))
                if r.rollout_id in taken
            ]
            self.examples = {e.example_id: e for e in run.read("examples", GroundingExample)}
            draws = sorted(run.read("draws", Draw), key=lambda d: d.position)
            self.order = [d.example_id for d in draws]

    def by_engine(self, noise: Noise | None) -> list[Rollout]:
        """As hf has sampled them, or as vLLM with some noise might have."""
        if noise is None:
            return self.rollouts
        return [
            replace(
                r,
                engine="vllm",
                sampling_logprobs=[
                    logprob + noise(r.rollout_id, t)
                    for t, logprob in enumerate(known(r.sampling_logprobs))
                ],
            )
            for r in self.rollouts
        ]

    def update(self, name: str, rollouts: list[Rollout], *overrides: str) -> UpdateResult:
        config = load_config(
            self.config, ["update.epochs=2", "update.max_logprob_mismatch=1.0", *overrides]
        )
        items = [
            Trained(self.examples[i], mine, tuple(self.scores[r.rollout_id] for r in mine))
            for i in self.order
            if (mine := tuple(r for r in rollouts if r.example_id == i))
        ]
        return update_student(config, self.parent, HeldRows(items), self.config.with_name(name))

    def weights_of(self, name: str) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        return load_file(self.config.with_name(name) / "model.safetensors")


@pytest.fixture(scope="module")
def round_(write_config: Any, tmp_path_factory: pytest.TempPathFactory) -> Round:
    settings = {"focus.curriculum": "uniform", "rollout.examples_per_round": 6}
    return Round(write_config(tmp_path_factory.mktemp("round"), settings))


def largest_difference(round_: Round, a: str, b: str) -> float:
    one, other = round_.weights_of(a), round_.weights_of(b)
    return max(float((one[k].float() - other[k].float()).abs().max()) for k in one)


def test_what_grpo_clips_does_not_depend_on_the_engine(round_: Round) -> None:
    """Without weights the sampler's log-probs play no part: two epochs give the same checkpoint."""
    ours = ["update.objective=grpo", "update.tis=off", "update.learning_rate=1e-3",
            "update.grpo.clip_low=0.02", "update.grpo.clip_high=0.02"]  # fmt: skip
    hf = round_.update("hf", round_.by_engine(None), *ours)
    vllm = round_.update("vllm", round_.by_engine(noisy), *ours)
    round_.update("weighted", round_.by_engine(noisy), *ours, "update.tis=token")
    assert largest_difference(round_, "hf", "vllm") < 1e-4
    assert largest_difference(round_, "hf", "weighted") > 1e-3
    assert known(hf.first_step).largest < 1e-4 and 0.25 < known(vllm.first_step).largest < 0.31
    assert len(vllm.steps) > 3
    for a, b in zip(hf.steps, vllm.steps, strict=True):
        for name in ("loss", "policy_kl", "ratio_min", "ratio_max", "effective_sample_size"):
            assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-4, abs=1e-5), name
    assert known(vllm.steps[-1].ratio_max) > 1.02, "there was something to clip"
    assert vllm.steps[0].ratio_min == vllm.steps[0].ratio_max == 1.0
    assert vllm.steps[0].policy_kl == 0.0 and vllm.steps[0].tis_weight_mean is None


@pytest.mark.parametrize("objective", ["policy_gradient", "grpo", "exact_reverse_kl"])
def test_an_engine_that_is_off_by_a_factor_scales_every_step(round_: Round, objective: str) -> None:
    """mu = e^-0.25 pi_v: weights by token are e^0.25 in all epochs, however far pi has moved."""
    exact = objective == "exact_reverse_kl"
    # An exact loss weighs a token by those before it: off at the first only, all later ones are.
    shift: Noise = (lambda _, t: -0.25 if t == 0 else 0.0) if exact else (lambda _, t: -0.25)
    settings = [f"update.objective={objective}", "update.max_grad_norm=1e6"]
    hf = round_.update(f"{objective}-hf", round_.by_engine(None), *settings)
    vllm = round_.update(f"{objective}-vllm", round_.by_engine(shift), *settings)
    for number, (a, b) in enumerate(zip(hf.steps, vllm.steps, strict=True)):
        if not exact:
            assert b.loss == pytest.approx(math.exp(0.25) * a.loss, rel=1e-3, abs=1e-5)
            assert b.tis_weight_mean == pytest.approx(math.exp(0.25), abs=1e-4)
        else:
            of_first = (math.exp(0.25) - known(b.tis_weight_mean)) / (math.exp(0.25) - 1.0)
            assert of_first == pytest.approx(b.rollouts / b.tokens, abs=1e-4)
        assert b.policy_kl == pytest.approx(a.policy_kl, rel=0.05, abs=1e-6), number
        assert a.tis_weight_mean is None
    assert known(hf.steps[-1].ratio_max) > 1.0001, "the policy has moved"


@pytest.mark.parametrize("case", ["policy_gradient", "exact_reverse_kl", "sum", "mixed engines"])
def test_the_numbers_of_a_step_are_those_of_the_definition(round_: Round, case: str) -> None:
    """Steps 0 and 1, from each rollout's three log-probs: what was stored, and pi_v beside it."""
    objective = {
        "exact_reverse_kl": "exact_reverse_kl",
        "sum": "{policy_gradient=1.0, exact_reverse_kl=3.0, sft=4.0}",
    }.get(case, "policy_gradient")
    old = {r.rollout_id: r.sampling_logprobs for r in round_.rollouts}
    rollouts = round_.by_engine(noisy)
    if case == "mixed engines":
        rollouts = [a if i % 2 else b for i, (a, b) in
                    enumerate(zip(round_.rollouts, rollouts, strict=True))]  # fmt: skip
    result = round_.update(
        f"{case}-def", rollouts, f"update.objective={objective}", "update.tis_cap=1.1"
    )
    assert known(result.first_step).largest > 0.25
    by_id = {r.rollout_id: r for r in rollouts}
    for step in result.steps[:2]:
        token, prefix, ratio, losses, cut_token, cut_prefix = [], [], [], [], [], []
        for seen in (t for t in result.trained if t.step == step.step):
            rollout, score = by_id[seen.rollout_id], round_.scores[seen.rollout_id]
            before = 1.0
            for t, now in enumerate(seen.student_logprobs):
                pi_v, mu = known(old[seen.rollout_id])[t], known(rollout.sampling_logprobs)[t]
                own = math.exp(pi_v - mu)
                token.append(min(own, 1.1))
                prefix.append(min(before, 1.1))
                cut_token.append(own > 1.1)
                cut_prefix.append(before > 1.1)
                before *= own
                ratio.append(math.exp(now - pi_v))
                advantage = score.teacher_logprobs[t] - pi_v
                losses.append(-token[-1] * ratio[-1] * advantage)
        shares = {"exact_reverse_kl": (0, 1, 0), "sum": (1 / 8, 3 / 8, 4 / 8)}.get(case, (1, 0, 0))

        def mixed(a: list[Any], b: list[Any], c: float, shares: Any = shares) -> list[float]:
            return [
                x * shares[0] + y * shares[1] + c * shares[2] for x, y in zip(a, b, strict=True)
            ]

        def near(value: float) -> Any:
            return pytest.approx(value, abs=2e-4)

        assert len(ratio) == step.tokens
        used = mixed(token, prefix, 1.0)
        assert step.tis_weight_mean == near(sum(used) / len(used))
        cut = mixed(cut_token, cut_prefix, 0.0)
        assert step.tis_truncated == near(sum(cut) / len(cut)) and 0 < known(step.tis_truncated) < 1
        factor = mixed([w * r for w, r in zip(token, ratio, strict=True)], prefix, 1.0)
        size = sum(factor) ** 2 / (len(factor) * sum(f * f for f in factor))
        assert step.effective_sample_size == near(size)
        assert step.ratio_min == near(min(ratio)) and step.ratio_max == near(max(ratio))
        kl = sum(r - 1 - math.log(r) for r in ratio) / len(ratio)
        assert step.policy_kl == near(kl)
        if case in ("policy_gradient", "mixed engines"):
            assert step.loss == near(sum(losses) / len(losses))
    assert known(result.steps[1].ratio_max) > 1.00001


def test_what_is_left_out_of_the_loss_is_in_no_number_of_its_weights(round_: Round) -> None:
    """Answers that end in a special token, on which the engine is far off, trained without it."""
    from opd_core.prompts.encoder import load_processor

    end = load_processor(round_.parent.path).tokenizer.eos_token_id
    rollouts = [
        replace(r, completion_token_ids=[*r.completion_token_ids[:-1], end])
        for r in round_.by_engine(lambda _, t: 0.0)
    ]
    settings = ["update.objective=policy_gradient", "update.max_logprob_mismatch=100"]
    whole = round_.update("whole", rollouts, *settings).steps[0]
    assert (
        abs(known(whole.tis_weight_mean) - 1.0) > 1e-3
        and known(whole.effective_sample_size) < 0.999
    )
    left = round_.update("left", rollouts, *settings, "update.skip_special_tokens=true").steps[0]
    assert left.tis_weight_mean == pytest.approx(1.0, abs=1e-4)
    assert left.effective_sample_size == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(("settings", "words"), [
    (["update.objective=exact_reverse_kl", "update.tis=token"], "update.tis = 'prefix'"),
    (["update.objective=exact_forward_kl", "update.tis=token"], "exact at its state"),
    (["update.objective=jsd", "update.tis=token"], "update.tis = 'prefix'"),
    (["update.objective={policy_gradient=1.0, jsd=1.0}", "update.tis=token"], "'auto', which"),
    (["update.objective=grpo", "update.tis=prefix", "rollout.rollouts_per_example=4"],
     "update.tis = 'token'"),
])  # fmt: skip
def test_weights_that_mend_nothing_are_refused(
    write_config: Any, tmp_path: Path, settings: list[str], words: str
) -> None:
    config = write_config(tmp_path)
    with pytest.raises(VideoOPDError, match=words):
        load_config(config, settings)


@pytest.mark.parametrize("tis", ["auto", "off", "sequence"])
def test_those_that_fit_are_not(write_config: Any, tmp_path: Path, tis: str) -> None:
    for objective in ("policy_gradient", "jsd", "{policy_gradient=1.0, jsd=1.0}", "sft"):
        config = load_config(
            write_config(tmp_path), [f"update.objective={objective}", f"update.tis={tis}"]
        )
        assert config.update.tis == tis
