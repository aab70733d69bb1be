"""Score: the teacher's log-probabilities of the student's rollouts, one forward pass a prefix tree.

The teacher generates nothing. Its prompt must be the very prompt that was answered: token ids,
grid and pixels of every rollout are compared before anything is computed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from opd_core.config import Config
from opd_core.encoding import EncodedExample, ExampleEncoder, cut_at_videos
from opd_core.prefix_tree import PrefixTree, fill, grow, pack
from opd_core.rollout import Batch, Policy
from opd_core.tree_model import TreeModel, choose_device, load_model
from opd_core.types import (
    GroundingExample,
    QuarantinedItem,
    Rollout,
    TeacherScore,
    VideoOPDError,
)

VIDEOS_PER_BATCH = 32
"""Videos scored between two appends."""


def score_rollouts(
    config: Config, teacher: Policy, work: Sequence[tuple[GroundingExample, Sequence[Rollout]]]
) -> Iterator[Batch[TeacherScore]]:
    """Scores of the rollouts of each example; sentences of one video are neighbours in `work`.

    Raises `VideoOPDError` when a rollout was made from another prompt or other pixels than the
    teacher would see.
    """
    if not work:
        return
    encoder = ExampleEncoder(config, teacher.folder)
    rollouts = {example.example_id: list(answers) for example, answers in work}
    batches = list(cut_at_videos([example for example, _ in work], VIDEOS_PER_BATCH))
    with opened_scorer(config, teacher, encoder, rollouts) as score_videos:
        for encoded in encoder.encode_batches(batches, "score", teacher.version):
            scores: list[TeacherScore] = []
            quarantined = list(encoded.quarantined)
            for score in score_videos(encoded.videos):
                if fault := _fault(score):
                    version = score.policy_version
                    quarantined.append(
                        QuarantinedItem(score.rollout_id, "score", None, fault, version)
                    )
                else:
                    scores.append(score)
            dealt = sum(len(v) for v in encoded.videos) + len(encoded.quarantined)
            yield Batch(tuple(scores), tuple(quarantined), dealt)


@contextmanager
def opened_scorer(
    config: Config,
    teacher: Policy,
    encoder: ExampleEncoder,
    rollouts: dict[str, list[Rollout]],
) -> Iterator[Callable[[Sequence[Sequence[EncodedExample]]], Iterable[TeacherScore]]]:
    """What scores all rollouts of some videos, by the teacher's engine."""
    if config.teacher.engine == "vllm":
        from opd_core.engines.choice import opened_vllm
        from opd_core.engines.scores import score_with_vllm

        longest = max(len(r.completion_token_ids) for rows in rollouts.values() for r in rows)
        with opened_vllm(
            config, teacher.folder, config.teacher.dtype, encoder, longest + 1
        ) as engine:
            yield lambda videos: score_with_vllm(engine, config, teacher, encoder, videos, rollouts)
        return
    model = TreeModel(
        load_model(teacher.folder, config.teacher.dtype, choose_device(config.machine.device)),
        encoder.prompts.tokenizer,
        config.update.completion_rows_per_chunk,
    )
    by_id = {r.rollout_id: r for rows in rollouts.values() for r in rows}
    yield lambda videos: _score_trees(
        model, [rollout_tree(video, rollouts) for video in videos], teacher, by_id, config
    )


def rollout_tree(video: Sequence[EncodedExample], rollouts: dict[str, list[Rollout]]) -> PrefixTree:
    """The tree of one video's sentences and their rollouts, keyed by rollout id."""
    for item in video:
        for rollout in rollouts[item.example.example_id]:
            check_same_prompt(item, rollout)
    return grow(
        [item.prompt.token_ids for item in video],
        [
            [(r.rollout_id, r.completion_token_ids) for r in rollouts[item.example.example_id]]
            for item in video
        ],
        video[0].prompt.vision,
    )


def check_same_prompt(item: EncodedExample, rollout: Rollout) -> None:
    """Raise unless a rollout answered exactly this prompt, with these pixels."""
    for what, was, now in (
        ("prompt token ids", tuple(rollout.prompt_token_ids), item.prompt.token_ids),
        ("grid", tuple(rollout.grid_thw), item.prompt.vision.grid_thw),
        ("pixels", rollout.pixel_hash, item.clip.pixel_hash),
    ):
        if was != now:
            raise VideoOPDError(
                f"rollout {rollout.rollout_id} was sampled from other {what} than "
                f"{item.example.video_path} gives now; restore the video and the processor files, "
                "or start a new run"
            )


@torch.inference_mode()
def _score_trees(
    model: TreeModel,
    trees: Sequence[PrefixTree],
    teacher: Policy,
    rollouts: dict[str, Rollout],
    config: Config,
) -> Iterator[TeacherScore]:
    for group in fill(trees, config.update.max_tokens_per_pack):
        began = time.perf_counter()
        packed = pack(group)
        rows: list[tuple[str, Tensor, tuple[Tensor, Tensor, Tensor] | None]] = []
        for keys, token_ids_C, logprobs_CV in model.completion_distributions(packed):
            chosen_C = logprobs_CV.gather(1, token_ids_C[:, None])[:, 0].cpu()
            top = _top(logprobs_CV, config.score.teacher_topk)
            start = 0
            for key in keys:
                part = slice(start, start + len(packed.completions[key]))
                start = part.stop
                kept = None if top is None else (top[0][part], top[1][part], top[2][part])
                rows.append((str(key), chosen_C[part], kept))
        seconds = (time.perf_counter() - began) / max(len(rows), 1)
        for rollout_id, teacher_logprobs_T, kept in rows:
            yield TeacherScore(
                rollout_id=rollout_id,
                policy_version=rollouts[rollout_id].policy_version,
                teacher_id=teacher.folder.name,
                teacher_hash=teacher.weights_hash,
                teacher_logprobs=teacher_logprobs_T.tolist(),
                topk_token_ids=None if kept is None else kept[0].tolist(),
                topk_logprobs=None if kept is None else kept[1].tolist(),
                tail_logprobs=None if kept is None else kept[2].tolist(),
                seconds=seconds,
            )


def _top(logprobs_CV: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """ids [C, K], log-probs [C, K], log of the remaining mass [C]; on the CPU. None for k = 0.

    K is smaller than k where fewer tokens are possible.
    """
    if k == 0:
        return None
    possible = int((logprobs_CV[0] > float("-inf")).sum())
    values, ids = logprobs_CV.topk(min(k, possible), dim=1)
    rest = logprobs_CV.scatter(1, ids, float("-inf")).logsumexp(dim=1)
    # No mass at all has no finite logarithm; the smallest float32 stands for it.
    rest = rest.clamp(min=torch.finfo(torch.float32).min)
    return ids.cpu(), values.cpu(), rest.cpu()


def _fault(score: TeacherScore) -> str | None:
    for position, logprob in enumerate(score.teacher_logprobs):
        if not math.isfinite(logprob):
            return f"the teacher's log-prob of token {position} is {logprob}"
    return None
