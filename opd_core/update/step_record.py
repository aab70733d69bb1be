"""What one optimiser step's forward passes said about its tokens: the numbers of `UpdateStep`.

Ratios and weights are those that the loss used, over the tokens that are in it: pi / pi_v, with
pi_v as `importance.py` has it, and pi_v / mu. Only the first step's check is against mu itself.
Where the policy has not sampled the tokens itself (baselines that train on answers of policy 0 or
of a teacher, or on the truth), there is nothing to compare the trainer's log-probs with, and those
numbers are None.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opd_core.model.agreement import Bound
from opd_core.types import VideoOPDError
from opd_core.update.chunk import Chunk
from opd_core.update.importance import Weights


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
        self._old: list[Tensor] = []
        self._in_loss: list[Tensor] = []
        self._weighted = False
        self._weights: list[Tensor] = []
        self._truncated: list[Tensor] = []
        self._factors: list[Tensor] = []
        self._not_finite: str | None = None

    @classmethod
    def joined(cls, records: Sequence[StepRecord]) -> StepRecord:
        """That of a step whose packs were dealt over ranks, from each one's."""
        whole = cls()
        for one in records:
            whole.keys += one.keys
            whole.loss += one.loss
            whole._lengths += one._lengths
            whole._student += one._student
            whole._sampling = _both(whole._sampling, one._sampling)
            whole._teacher = _both(whole._teacher, one._teacher)
            whole._owner += one._owner
            whole._old += one._old
            whole._in_loss += one._in_loss
            whole._weighted |= one._weighted
            whole._weights += one._weights
            whole._truncated += one._truncated
            whole._factors += one._factors
            whole._not_finite = whole._not_finite or one._not_finite
        return whole

    def add_loss(self, loss: float) -> None:
        """That of a pack whose chunks were added."""
        self.loss += loss
        if not math.isfinite(loss):
            self._not_finite = self._not_finite or self.keys[-1]

    def refuse_not_finite(self) -> None:
        if self._not_finite is not None:
            raise VideoOPDError(
                f"the loss of the update is {self.loss} on rollouts such as {self._not_finite}; "
                "lower update.learning_rate and rerun the stage"
            )

    def add(self, chunk: Chunk, weights: Weights, in_loss_C: Tensor) -> None:
        """`in_loss_C`: which of the chunk's tokens are trained."""
        self._student.append(chunk.chosen_C.detach().cpu().double())
        self._old.append(chunk.old_C.cpu().double())
        self._in_loss.append(in_loss_C.cpu())
        self._weighted |= bool(weights.of_objective)
        self._weights.append(weights.mean_C.cpu().double())
        self._truncated.append(weights.cut_C.cpu().double())
        self._factors.append(weights.factor_C.cpu().double())
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

    @property
    def tokens(self) -> int:
        """Of all completions, also those that are not in the loss."""
        return sum(self._lengths)

    def by_rollout(self) -> Iterator[tuple[str, array[float]]]:
        """(rollout id, its student log-probs, as float32, which they are), in the order of the
        packs. They are kept until the update ends."""
        for key, part in zip(self.keys, self._student_T().split(self._lengths), strict=True):
            yield key, array("f", part.tolist())

    def student_k1(self) -> float | None:
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
        if self._log_ratio() is None:
            return None
        factor = self._of_the_loss(self._factors)
        return float(factor.sum() ** 2 / (len(factor) * (factor**2).sum()))

    def tis_weight_mean(self) -> float | None:
        return self._mean_if_weighted(self._weights)

    def tis_truncated(self) -> float | None:
        return self._mean_if_weighted(self._truncated)

    def _mean_if_weighted(self, values: list[Tensor]) -> float | None:
        of_loss = self._of_the_loss(values)
        return float(of_loss.mean()) if self._weighted and len(of_loss) else None

    def check_first_step(self, bound: Bound) -> FirstStep | None:
        """How far student and sampler are apart; raises beyond `bound`, naming the worst token."""
        if self._sampling is None:
            return None
        sampling = torch.cat(self._sampling)
        difference = (self._student_T() - sampling).abs()
        worst = int(difference.argmax())
        rollout_id, position = self._owner[worst]
        student = float(self._student_T()[worst])
        sampler = float(sampling[worst])
        worst_token = (
            f"token {position} of rollout {rollout_id} has log-prob {sampler:.6f} from the sampler "
            f"and {student:.6f} from the trainer"
        )
        mend = "the two do not compute the same model: compare their precision and processor"
        if not float(difference[worst]) <= bound.largest:
            raise VideoOPDError(
                f"{worst_token}, further apart than update.max_logprob_mismatch = {bound.largest} "
                f"({bound.reason}); {mend}"
            )
        if fault := bound.mean_fault(difference.tolist()):
            raise VideoOPDError(
                f"{worst_token}, and the mean difference of {len(difference)} tokens is "
                f"{fault[0]:.4f}, above {fault[1]:.4f} ({bound.reason}); {mend}, or set "
                "update.max_logprob_mismatch, which then counts alone"
            )
        mean_bound = bound.mean_of(len(difference))
        return FirstStep(
            float(difference[worst]), float(difference.mean()), bound.largest, mean_bound
        )

    def _student_T(self) -> Tensor:
        return torch.cat(self._student)

    def _log_ratio(self) -> Tensor | None:
        """log pi - log pi_v of each token of the loss."""
        if self._sampling is None:
            return None
        log_ratio = self._of_the_loss(self._student) - self._of_the_loss(self._old)
        return log_ratio if len(log_ratio) else None

    def _of_the_loss(self, values: list[Tensor]) -> Tensor:
        return torch.cat(values)[torch.cat(self._in_loss)]


def _both(some: list[Tensor] | None, more: list[Tensor] | None) -> list[Tensor] | None:
    return None if some is None or more is None else some + more


def _double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
