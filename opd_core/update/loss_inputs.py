"""What the losses of a config are computed from, beside the student's own side of a chunk.

Shape suffixes: C completion tokens of a chunk, V vocabulary, B buckets of tokens, K kept tokens, D
the teacher's hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from opd_core.config.load import Config
from opd_core.hub.name import model_name
from opd_core.model.lm_head import load_lm_head, teacher_distribution
from opd_core.types import TeacherScore, VideoOPDError
from opd_core.update import objectives
from opd_core.update.chunk import Chunk


class LossInputs:
    """The settings, and what the teacher and the group say of a chunk's tokens; on one device.

    Raises `VideoOPDError` where a rollout lacks what is asked for.
    """

    def __init__(self, config: Config, excluded_ids: Sequence[int], device: torch.device) -> None:
        self.settings = config.update
        self._config = config
        self._device = device
        self._excluded_ids = excluded_ids
        self._heads: dict[str, Tensor] = {}
        """Of each teacher by its name in rows, [V, D]; where their whole distribution is needed."""
        if (
            config.needs_teacher_distribution
            and self.settings.teacher_distribution == "hidden_states"
        ):
            for teacher in config.all_teachers:
                head_VD = load_lm_head(teacher.path, teacher.dtype, device)
                self._heads[model_name(teacher.path)] = head_VD

    def teacher_logprobs(self, chunk: Chunk) -> Tensor:
        """The teacher's log-probs of the sampled tokens, [C]."""
        return self._join([s.teacher_logprobs for s in self._scores(chunk)])

    def advantages(self, chunk: Chunk) -> Tensor:
        """The advantage of each token's answer among those to its example, [C]."""
        return self._join(
            [[f.advantage] * len(f.rollout.completion_token_ids) for f in chunk.facts]
        )

    def buckets(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Student's and teacher's log-probs over the same buckets, [C, B]."""
        if self.settings.teacher_distribution == "hidden_states":
            return chunk.logprobs_CV, self.teacher_vocabulary(chunk)
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

    def teacher_vocabulary(self, chunk: Chunk) -> Tensor:
        """The teacher's whole distribution, [C, V], from the hidden states that were kept."""
        assert self._heads
        scores = self._scores(chunk)
        for score in scores:
            if score.hidden_states is None:
                raise VideoOPDError(
                    f"rollout {score.rollout_id} was scored without the teacher's hidden states, "
                    "which update.teacher_distribution = 'hidden_states' needs; start a new run "
                    "with score.hidden_states = true"
                )
        vocabulary = chunk.logprobs_CV.shape[1]
        parts_CV = []
        for teacher_id, mine in groupby(scores, key=lambda score: score.teacher_id):
            head_VD = self._head(teacher_id)
            hidden_CD = self._join([score.hidden_states for score in mine]).to(head_VD)
            parts_CV.append(
                teacher_distribution(hidden_CD, head_VD, self._excluded_ids, vocabulary)
            )
        return torch.cat(parts_CV)

    def _head(self, teacher_id: str) -> Tensor:
        """The only one, whatever its folder is called by now; of several that of the name."""
        if len(self._heads) == 1:
            return next(iter(self._heads.values()))
        if teacher_id not in self._heads:
            raise VideoOPDError(
                f"a rollout was scored by {teacher_id}, which is none of [[teachers]] now "
                f"({', '.join(self._heads)}); put its entry back"
            )
        return self._heads[teacher_id]

    def _scores(self, chunk: Chunk) -> list[TeacherScore]:
        scores = [fact.score for fact in chunk.facts]
        for fact, score in zip(chunk.facts, scores, strict=True):
            if score is None:
                raise VideoOPDError(
                    f"rollout {fact.rollout.rollout_id} has no teacher score, which "
                    f"update.objective = {self._config.objective_text!r} needs; run the score stage"
                )
        return [score for score in scores if score is not None]

    def _join(self, columns: Sequence[object], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.cat([torch.tensor(c, dtype=dtype) for c in columns]).to(self._device)
