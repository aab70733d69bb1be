"""What one optimiser step's forward passes said about its tokens: the numbers of `UpdateStep`.

Where the policy has not sampled the tokens itself (baselines that train on a teacher's answers, or
on the truth), there is nothing to compare the trainer's log-probs with, and those numbers are None.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from opd_core.agreement import Bound
from opd_core.training_loss import Chunk
from opd_core.types import VideoOPDError


@dataclass(frozen=True, slots=True)
class FirstStep:
    """|student - sampling| log-prob of the tokens of the first step, and what it was held against;
    nats."""

    largest: float
    mean: float
    largest_bound: float
    mean_bound: float | None


class StepRecord:
    def __init__(self) -> None:
        self.keys: list[str] = []
        self.loss = 0.0
        self._lengths: list[int] = []
        self._student: list[Tensor] = []
        self._sampling: list[Tensor] | None = []
        self._teacher: list[Tensor] | None = []
        self._owner: list[tuple[str, int]] = []
        self._weights: list[Tensor] = []
        self._truncated: list[Tensor] = []

    def add(self, chunk: Chunk, weights: tuple[Tensor, Tensor] | None) -> None:
        self._student.append(chunk.chosen_C.detach().cpu().double())
        if weights is not None:
            self._weights.append(weights[0].double().cpu())
            self._truncated.append(weights[1].double().cpu())
        for fact in chunk.facts:
            rollout = fact.rollout
            length = len(rollout.completion_token_ids)
            self.keys.append(rollout.rollout_id)
            self._lengths.append(length)
            self._owner.extend((rollout.rollout_id, t) for t in range(length))
            if self._sampling is not None:
                if rollout.answered_by == "student" and rollout.sampling_logprobs is not None:
                    self._sampling.append(_double(rollout.sampling_logprobs))
                else:
                    self._sampling = None
            if self._teacher is not None:
                if fact.score is not None:
                    self._teacher.append(_double(fact.score.teacher_logprobs))
                else:
                    self._teacher = None

    def by_rollout(self) -> Iterator[tuple[str, tuple[float, ...]]]:
        """(rollout id, its student log-probs), in the order of the packs."""
        for key, part in zip(self.keys, self._student_T().split(self._lengths), strict=True):
            yield key, tuple(part.tolist())

    def reverse_kl(self) -> float | None:
        if self._teacher is None or self._sampling is None:
            return None
        return float((self._student_T() - torch.cat(self._teacher)).mean())

    def policy_kl(self) -> float | None:
        log_ratio = self._log_ratio()
        return None if log_ratio is None else float((log_ratio.exp() - 1.0 - log_ratio).mean())

    def ratio_range(self) -> tuple[float, float] | tuple[None, None]:
        log_ratio = self._log_ratio()
        if log_ratio is None:
            return None, None
        return float(log_ratio.min().exp()), float(log_ratio.max().exp())

    def effective_sample_size(self) -> float | None:
        log_ratio = self._log_ratio()
        if log_ratio is None:
            return None
        ratio = log_ratio.exp()
        return float(ratio.sum() ** 2 / (len(ratio) * (ratio**2).sum()))

    def tis_weight_mean(self) -> float | None:
        return float(torch.cat(self._weights).mean()) if self._weights else None

    def tis_truncated(self) -> float | None:
        return float(torch.cat(self._truncated).mean()) if self._truncated else None

    def check_first_step(self, bound: Bound) -> FirstStep | None:
        """How far student and sampler are apart; raises beyond `bound`, naming the worst token."""
        log_ratio = self._log_ratio()
        if log_ratio is None:
            return None
        difference = log_ratio.abs()
        worst = int(difference.argmax())
        rollout_id, position = self._owner[worst]
        student = float(self._student_T()[worst])
        sampler = student - float(log_ratio[worst])
        found = (
            f"token {position} of rollout {rollout_id} has log-prob {sampler:.6f} from the sampler "
            f"and {student:.6f} from the trainer"
        )
        mend = "the two do not compute the same model: compare their precision and processor"
        if not float(difference[worst]) <= bound.largest:
            raise VideoOPDError(
                f"{found}, further apart than update.max_logprob_mismatch = {bound.largest} "
                f"({bound.reason}); {mend}"
            )
        if fault := bound.mean_fault(difference.tolist()):
            raise VideoOPDError(
                f"{found}, and the mean difference of {len(difference)} tokens is {fault[0]:.4f}, "
                f"above {fault[1]:.4f} ({bound.reason}); {mend}, or set "
                "update.max_logprob_mismatch, which then counts alone"
            )
        mean_bound = bound.mean_of(len(difference))
        return FirstStep(
            float(difference[worst]), float(difference.mean()), bound.largest, mean_bound
        )

    def _student_T(self) -> Tensor:
        return torch.cat(self._student)

    def _log_ratio(self) -> Tensor | None:
        """log pi - log pi_v of each token."""
        if self._sampling is None:
            return None
        return self._student_T() - torch.cat(self._sampling)


def _double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
