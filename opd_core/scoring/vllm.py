"""Teacher scores by vLLM's prompt_logprobs, for teachers that only fit under tensor parallelism.

The HF forward is the default: it runs a video's rollouts as one prefix tree and projects completion
rows only, where prompt_logprobs runs every rollout with its whole prompt (it skips the prefix
cache) and projects every row onto the vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from opd_core import faults
from opd_core.config.load import Config
from opd_core.engines.base import Refused
from opd_core.engines.gate import Gate
from opd_core.engines.vllm.child import ChildEngine
from opd_core.engines.vllm.engine import Scored, VLLMPrompt, tail_logprob
from opd_core.prompts.batches import EncodedExample, ExampleEncoder
from opd_core.scoring.same_prompt import check_same_prompt
from opd_core.scoring.score_key import content_hash
from opd_core.types import QuarantinedItem, Rollout, TeacherScore, VideoOPDError

if TYPE_CHECKING:
    from opd_core.types import Policy


def score_with_vllm(
    engine: ChildEngine,
    config: Config,
    teacher: Policy,
    encoder: ExampleEncoder,
    videos: Sequence[Sequence[EncodedExample]],
    rollouts: Mapping[str, Sequence[Rollout]],
    scorer: str,
    refused: list[QuarantinedItem],
) -> list[TeacherScore]:
    """Scores of the rollouts of each example; to `refused` is added what vLLM would not take.

    Raises `VideoOPDError` when the engine's prompt is not the one that was answered.
    """
    began = time.perf_counter()
    prompts_of = encoder.prompts
    gate = Gate(
        prompts_of.tokenizer,
        config.rollout.max_new_tokens,
        prompts_of.architecture,
        prompts_of.positions,
    )
    prompts: list[list[VLLMPrompt]] = []
    for video in videos:
        asked: list[VLLMPrompt] = []
        for item in video:
            rows = rollouts[item.example.example_id]
            for rollout in rows:
                check_same_prompt(item, rollout)
            answers = tuple(tuple(r.completion_token_ids) for r in rows)
            key = item.example.example_id
            asked.append(VLLMPrompt(key, item.prompt.text, item.clip, completions=answers))
        prompts.append(asked)
    scores = engine.score(prompts, config.score.teacher_topk)
    reasons = [answer.reason for answer in scores.values() if isinstance(answer, Refused)]
    if len(reasons) == len(scores) > 1:
        raise VideoOPDError(
            f"vLLM would take none of {len(scores)} prompts to score ({reasons[0]}); correct the "
            "[vllm] section, or set teacher.engine = 'hf'"
        )
    pairs: list[tuple[Rollout, Scored]] = []
    for item in (item for video in videos for item in video):
        scored = scores[item.example.example_id]
        if isinstance(scored, Refused):
            example = item.example
            refused.append(
                QuarantinedItem(
                    example.example_id,
                    "score",
                    example.video_path,
                    f"vllm: {scored.reason}",
                    teacher.version,
                    faults.ENGINE,
                )
            )
            continue
        for rollout, answer in zip(rollouts[item.example.example_id], scored, strict=True):
            if fault := gate.prompt_fault(item, answer.prompt):
                raise VideoOPDError(
                    f"vLLM scored rollout {rollout.rollout_id} on another prompt than ours "
                    f"({fault}); set teacher.engine = 'hf'"
                )
            pairs.append((rollout, answer))
    seconds = (time.perf_counter() - began) / max(len(pairs), 1)
    return [_score(teacher, rollout, answer, scorer, seconds) for rollout, answer in pairs]


def _score(
    teacher: Policy, rollout: Rollout, scored: Scored, scorer: str, seconds: float
) -> TeacherScore:
    with_topk = bool(scored.topk_token_ids[0])
    return TeacherScore(
        rollout_id=rollout.rollout_id,
        policy_version=rollout.policy_version,
        teacher_id=teacher.path.name,
        teacher_hash=teacher.weights_hash,
        teacher_logprobs=scored.logprobs,
        topk_token_ids=scored.topk_token_ids if with_topk else None,
        topk_logprobs=scored.topk_logprobs if with_topk else None,
        tail_logprobs=[tail_logprob(row) for row in scored.topk_logprobs] if with_topk else None,
        teacher_entropies=None,
        hidden_states=None,
        scorer=scorer,
        content_hash=content_hash(scorer, teacher.weights_hash, rollout),
        reused_from=None,
        seconds=seconds,
    )
