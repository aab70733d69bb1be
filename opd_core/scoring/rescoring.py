"""Exact divergences of kept scores: the teacher's hidden states, its lm_head, and one forward pass
of the policy that sampled. None of the teacher's other weights are read.

The policy's pass runs over the same prefix trees as scoring and training do. Both distributions are
made a few rows at a time: at a vocabulary of 150,000 a row of one is 0.6 MB.

Shape suffixes: C completion tokens of a chunk, D hidden size (each model's own), V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from opd_core.config.load import Config
from opd_core.model.divergences import Divergences, divergences
from opd_core.model.lm_head import load_lm_head, teacher_distribution
from opd_core.model.prefix_tree import fill, pack
from opd_core.model.tree_model import TreeModel, choose_device, load_model
from opd_core.prompts.batches import ExampleEncoder, cut_at_videos
from opd_core.scoring.trees import rollout_tree
from opd_core.types import Batch, Divergence, GroundingExample, Policy, Rollout, VideoOPDError

ROWS_PER_CHUNK = 128
"""Rows whose two distributions exist at once: 8 temporaries of 78 MB at a vocabulary of 150,000."""

SAME_HEAD = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.03}
"""Nats that the same rows through the same lm_head may differ by, in other company: two units in
the last place of a logit between 16 and 32 (bfloat16: 0.125 each), or what TF32 makes of it."""


class Kept(NamedTuple):
    """What a score holds of the teacher's distribution."""

    hidden_TD: np.ndarray
    """float32"""
    teacher_logprobs: Sequence[float]


@torch.inference_mode()
def rescore(
    config: Config,
    policy: Policy,
    teacher_hash: str,
    work: Sequence[tuple[GroundingExample, Sequence[Rollout]]],
    load: Callable[[Sequence[str]], Mapping[str, Kept]],
) -> Iterator[Batch[Divergence]]:
    """Divergences of the rollouts of each example; sentences of one video are neighbours.

    `load` gives the teacher's side of rollouts by their ids, a batch at a time. Raises
    `VideoOPDError` when the teacher's folder has another head than the one that scored, and as
    scoring does when a video has changed.
    """
    if not work:
        return
    encoder = ExampleEncoder(config, policy.path)
    device = choose_device(config.machine.device)
    head_VD = load_lm_head(config.teacher.path, config.teacher.dtype, device)
    model = TreeModel(
        load_model(policy.path, config.student.dtype, device),
        encoder.prompts.tokenizer,
        ROWS_PER_CHUNK,
    )
    rollouts = {example.example_id: list(answers) for example, answers in work}
    by_id = {r.rollout_id: r for answers in rollouts.values() for r in answers}
    batches = list(cut_at_videos([example for example, _ in work], config.score.prompts_per_batch))
    for encoded in encoder.encode_batches(batches, "rescore", policy.version):
        for lost in encoded.quarantined:
            raise VideoOPDError(
                f"{lost.video_path}, on which scored rollouts stand, can no longer be used "
                f"({lost.reason}); restore it and rescore again"
            )
        records: list[Divergence] = []
        examples = [item.example.example_id for video in encoded.videos for item in video]
        scores = load([r.rollout_id for example_id in examples for r in rollouts[example_id]])
        trees = [rollout_tree(video, rollouts) for video in encoded.videos]
        for group in fill(trees, config.update.max_tokens_per_pack):
            began = time.perf_counter()
            rows: list[tuple[str, _Measured]] = []
            for keys, token_ids_C, hidden_CD in model.completion_hidden(pack(group)):
                teacher_CD = torch.from_numpy(
                    np.concatenate([scores[str(key)].hidden_TD for key in keys])
                )
                measured = _measure(model, head_VD, token_ids_C, hidden_CD, teacher_CD)
                lengths = [len(by_id[str(key)].completion_token_ids) for key in keys]
                for key, part in zip(keys, measured.split(lengths), strict=True):
                    rows.append((str(key), part))
            seconds = (time.perf_counter() - began) / max(len(rows), 1)
            for rollout_id, part in rows:
                records.append(
                    _record(config, by_id[rollout_id], scores[rollout_id], part, teacher_hash,
                            seconds)
                )  # fmt: skip
        yield Batch(tuple(records), (), sum(len(video) for video in encoded.videos))


class _Measured(NamedTuple):
    """What a forward pass gave, in columns [C], float32, on the CPU."""

    divergences: Divergences
    student_logprobs: Tensor
    teacher_logprobs: Tensor

    def split(self, lengths: Sequence[int]) -> Iterator[_Measured]:
        columns = (*self.divergences, self.student_logprobs, self.teacher_logprobs)
        for parts in zip(*(column.split(list(lengths)) for column in columns), strict=True):
            yield _Measured(Divergences(*parts[:3]), parts[3], parts[4])


def _measure(
    model: TreeModel, head_VD: Tensor, token_ids_C: Tensor, hidden_CD: Tensor, teacher_CD: Tensor
) -> _Measured:
    """The columns, from the last hidden states of both models, `ROWS_PER_CHUNK` rows at a time."""
    chunks: list[tuple[Tensor, ...]] = []
    for start in range(0, len(token_ids_C), ROWS_PER_CHUNK):
        part = slice(start, start + ROWS_PER_CHUNK)
        student_CV = model.log_softmax(hidden_CD[part])
        teacher_CV = teacher_distribution(
            teacher_CD[part].to(head_VD), head_VD, model.excluded_ids, student_CV.shape[1]
        )
        ids = token_ids_C[part, None]
        exact = divergences(student_CV, teacher_CV)
        chosen = (student_CV.gather(1, ids)[:, 0], teacher_CV.gather(1, ids)[:, 0])
        chunks.append(tuple(column.cpu() for column in (*exact, *chosen)))
    columns = [torch.cat(parts) for parts in zip(*chunks, strict=True)]
    return _Measured(Divergences(*columns[:3]), columns[3], columns[4])


def _record(
    config: Config, rollout: Rollout, score: Kept, again: _Measured, teacher_hash: str,
    seconds: float,
) -> Divergence:  # fmt: skip
    teacher = _largest(again.teacher_logprobs, score.teacher_logprobs)
    if not teacher <= SAME_HEAD[config.teacher.dtype]:
        raise VideoOPDError(
            f"the hidden states kept of rollout {rollout.rollout_id} and the lm_head in "
            f"{config.teacher.path} give log-probs {teacher:.3g} nats off those that were scored; "
            "put back the teacher that scored (teacher.path) and its teacher.dtype"
        )
    return Divergence(
        rollout_id=rollout.rollout_id,
        policy_version=rollout.policy_version,
        teacher_hash=teacher_hash,
        forward_kl=again.divergences.forward_kl.tolist(),
        reverse_kl=again.divergences.reverse_kl.tolist(),
        js=again.divergences.js.tolist(),
        max_teacher_mismatch=teacher,
        max_student_mismatch=_largest(again.student_logprobs, _sampled(rollout)),
        seconds=seconds,
    )


def _sampled(rollout: Rollout) -> Sequence[float]:
    if rollout.answered_by != "student" or rollout.sampling_logprobs is None:
        raise VideoOPDError(
            f"rollout {rollout.rollout_id} is an answer of the {rollout.answered_by}, not of "
            "the policy; rescore a run with rollout.source = 'student'"
        )
    return rollout.sampling_logprobs


def _largest(now_T: Tensor, was: Sequence[float]) -> float:
    return float((now_T - torch.tensor(was, dtype=torch.float32)).abs().max())
