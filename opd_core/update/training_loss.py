"""The loss that a config asks for, of each completion token of a forward pass.

A weighted sum of objectives (`objectives.py`) on the same tokens and the same student pass, each
with the importance weights that fit it, and the options that hold for all of them: tokens left out,
entropy weights.

Shape suffixes: C completion tokens of a chunk, V vocabulary, B buckets of tokens, D the teacher's
hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from opd_core.config.load import Config
from opd_core.config.sections import DISTRIBUTION_OBJECTIVES
from opd_core.model.lm_head import load_lm_head, teacher_distribution
from opd_core.types import Rollout, TeacherScore, VideoOPDError
from opd_core.update import objectives
from opd_core.update.chunk import Chunk, Fact
from opd_core.update.importance import Weights


def facts_of(
    config: Config, rollouts: Sequence[Rollout], scores: Sequence[TeacherScore | None]
) -> list[Fact]:
    """Of all trained rollouts of one example, side by side with their scores."""
    advantages: Sequence[float | None] = [None] * len(rollouts)
    if "grpo" in config.objective_weights:
        grpo = config.update.grpo
        rewards = [
            r.student_iou + grpo.format_reward * (r.predicted_span is not None) for r in rollouts
        ]
        advantages = objectives.group_advantages(rewards, grpo.scale_by_std)
    return [Fact(r, s, a) for r, s, a in zip(rollouts, scores, advantages, strict=True)]


class TrainingLoss:
    """`config.update.objective` with its options, on one device."""

    def __init__(self, config: Config, tokenizer: Any, excluded_ids: Sequence[int],
                 device: torch.device) -> None:  # fmt: skip
        self._config, self._settings = config, config.update
        self._weights = config.objective_weights
        self._device = device
        self._excluded_ids = excluded_ids
        self._special = torch.tensor(sorted(tokenizer.all_special_ids), device=device)
        self._head_VD: Tensor | None = None
        distribution = any(name in DISTRIBUTION_OBJECTIVES for name in self._weights)
        if distribution and self._settings.teacher_distribution == "hidden_states":
            self._head_VD = load_lm_head(config.teacher.path, config.teacher.dtype, device)

    @property
    def needs_reference(self) -> bool:
        return "grpo" in self._weights and self._settings.grpo.reference_kl > 0

    def tokens_in_loss(self, token_ids: Sequence[int]) -> int:
        """How many of a completion's tokens are trained: the loss is divided by their number."""
        if not self._settings.skip_special_tokens:
            return len(token_ids)
        special = set(self._special.tolist())
        return sum(token not in special for token in token_ids)

    def __call__(self, chunk: Chunk, weights: Weights) -> Tensor:
        """The loss of each token, [C]; tokens that are left out have 0."""
        losses_C = torch.zeros_like(chunk.chosen_C)
        for name, weight in self._weights.items():
            term_C = _TERMS[name](self, chunk, weights.of_objective.get(name))
            losses_C = losses_C + weight * term_C
        if self._settings.entropy_weight:
            losses_C = losses_C * objectives.entropy_weights(chunk.logprobs_CV)
        return losses_C * self.in_loss(chunk)

    def in_loss(self, chunk: Chunk) -> Tensor:
        """Which of the tokens are trained, [C]."""
        if not self._settings.skip_special_tokens:
            return torch.ones_like(chunk.token_ids_C, dtype=torch.bool)
        return ~torch.isin(chunk.token_ids_C, self._special)

    # --- the objectives, each [C] ----------------------------------------------------------------

    def _policy_gradient(self, chunk: Chunk, weights_C: Tensor | None) -> Tensor:
        return objectives.policy_gradient(
            chunk.chosen_C,
            chunk.old_C,
            self._join([s.teacher_logprobs for s in self._scores(chunk)]),
            weights_C,
            self._settings.max_advantage,
        )

    def _reverse_kl(self, chunk: Chunk, weights_C: Tensor | None) -> Tensor:
        return objectives.weighted(objectives.exact_reverse_kl(*self._buckets(chunk)), weights_C)

    def _forward_kl(self, chunk: Chunk, weights_C: Tensor | None) -> Tensor:
        return objectives.weighted(objectives.exact_forward_kl(*self._buckets(chunk)), weights_C)

    def _jsd(self, chunk: Chunk, weights_C: Tensor | None) -> Tensor:
        losses_C = objectives.generalized_jsd(*self._buckets(chunk), self._settings.jsd_beta)
        return objectives.weighted(losses_C, weights_C)

    def _student_topk(self, chunk: Chunk, weights_C: Tensor | None) -> Tensor:
        possible = int((chunk.logprobs_CV[0] > float("-inf")).sum())
        k = min(self._settings.student_topk, possible)
        ids_CK = chunk.logprobs_CV.detach().topk(k, dim=1).indices
        student_CB = objectives.with_tail(chunk.logprobs_CV, ids_CK)
        teacher_CB = objectives.with_tail(self._teacher_vocabulary(chunk), ids_CK)
        return objectives.weighted(objectives.exact_reverse_kl(student_CB, teacher_CB), weights_C)

    def _grpo(self, chunk: Chunk, weights_C: Tensor | None) -> Tensor:
        grpo = self._settings.grpo
        advantages_C = self._join(
            [[f.advantage] * len(f.rollout.completion_token_ids) for f in chunk.facts]
        )
        losses_C = objectives.grpo(
            chunk.chosen_C, chunk.old_C, advantages_C, grpo.clip_low, grpo.clip_high, weights_C,
        )  # fmt: skip
        if chunk.reference_C is not None:
            kl_C = objectives.reference_kl(
                chunk.chosen_C, chunk.reference_C, chunk.old_C, weights_C
            )
            losses_C = losses_C + grpo.reference_kl * kl_C
        return losses_C

    def _sft(self, chunk: Chunk, weights_C: Tensor | None) -> Tensor:
        return objectives.cross_entropy(chunk.chosen_C)

    # --- what they are computed from -------------------------------------------------------------

    def _buckets(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Student's and teacher's log-probs over the same buckets, [C, B]."""
        if self._settings.teacher_distribution == "hidden_states":
            return chunk.logprobs_CV, self._teacher_vocabulary(chunk)
        scores = self._scores(chunk)
        for score in scores:
            if score.topk_token_ids is None:
                raise VideoOPDError(
                    f"rollout {score.rollout_id} was scored without the teacher's top-k, which "
                    f"update.objective = {self._config.objective_text!r} needs; start a new run "
                    "with score.teacher_topk = 32"
                )
        ids_CK = self._join([s.topk_token_ids for s in scores], torch.long)
        kept_CK = self._join([s.topk_logprobs for s in scores])
        tail_C = self._join([s.tail_logprobs for s in scores])
        teacher_CB = torch.cat((kept_CK, tail_C[:, None]), dim=1)
        return objectives.with_tail(chunk.logprobs_CV, ids_CK), teacher_CB

    def _teacher_vocabulary(self, chunk: Chunk) -> Tensor:
        """The teacher's whole distribution, [C, V], from the hidden states that were kept."""
        assert self._head_VD is not None
        scores = self._scores(chunk)
        for score in scores:
            if score.hidden_states is None:
                raise VideoOPDError(
                    f"rollout {score.rollout_id} was scored without the teacher's hidden states, "
                    "which update.teacher_distribution = 'hidden_states' needs; start a new run "
                    "with score.hidden_states = true"
                )
        hidden_CD = self._join([s.hidden_states for s in scores]).to(self._head_VD)
        vocabulary = chunk.logprobs_CV.shape[1]
        return teacher_distribution(hidden_CD, self._head_VD, self._excluded_ids, vocabulary)

    def _scores(self, chunk: Chunk) -> list[TeacherScore]:
        scores = [fact.score for fact in chunk.facts]
        for fact, score in zip(chunk.facts, scores, strict=True):
            if score is None:
                raise VideoOPDError(
                    f"rollout {fact.rollout.rollout_id} has no teacher score, which "
                    f"update.objective = {self._config.objective_text!r} needs; run the score stage"
                )
        return [score for score in scores if score is not None]

    def _join(self, columns: Sequence[Any], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.cat([torch.tensor(c, dtype=dtype) for c in columns]).to(self._device)


_TERMS: dict[str, Callable[[TrainingLoss, Chunk, Tensor | None], Tensor]] = {
    "policy_gradient": TrainingLoss._policy_gradient,
    "exact_reverse_kl": TrainingLoss._reverse_kl,
    "exact_forward_kl": TrainingLoss._forward_kl,
    "jsd": TrainingLoss._jsd,
    "student_topk_reverse_kl": TrainingLoss._student_topk,
    "grpo": TrainingLoss._grpo,
    "sft": TrainingLoss._sft,
}
