"""The annotation as an answer: what supervised fine-tuning trains on (`rollout.source = "truth"`).

Nobody samples it, so it has no log-probs of its own; prompt, pixels and ids are those of a rollout.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from opd_core.cluster.computing import computed
from opd_core.cluster.work import Compute, Examples, Feed, cut
from opd_core.config.load import Config
from opd_core.engines.choice import room_for
from opd_core.extensions import TRAINER
from opd_core.prompts.batches import EncodedExample, ExampleEncoder
from opd_core.spans.answer_reader import THOUGHT_ENDS
from opd_core.spans.grounding import answer_iou
from opd_core.templates.own_prompt import template_of
from opd_core.types import Batch, GroundingExample, Policy, Rollout, make_rollout_id, make_seed

SOURCE = "truth"


def truth_rollouts(
    config: Config, policy: Policy, examples: Sequence[GroundingExample], done: set[str]
) -> Iterator[Batch[Rollout]]:
    """One answer an example: its first span in the template's words, ended by the end token.

    `policy` is the one that is trained on it; `done` are rollout ids that exist.
    """

    per_batch = config.rollout.prompts_per_batch
    plan = cut(
        examples,
        per_batch,
        lambda e: make_rollout_id(policy.version, e.example_id, 0) not in done,
    )
    return computed(WritingTruth(config, policy), plan, examples)


@dataclass(frozen=True)
class WritingTruth:
    """A `StageWork`: prompts, and the annotations as answers to them."""

    config: Config
    policy: Policy

    stage = "rollout"

    @contextmanager
    def opened(self) -> Iterator[Compute[Rollout]]:
        """An encoder."""
        config, policy = self.config, self.policy
        encoder = ExampleEncoder(config, policy.path)
        room = room_for(config, TRAINER, encoder, config.rollout.max_new_tokens)

        def compute(feed: Feed) -> Iterator[Batch[Rollout]]:
            taken = Examples(feed)
            batches = encoder.encode_batches(
                taken, self.stage, policy.version, asks=True, room=room
            )
            for encoded in batches:
                piece = taken.taken.popleft()
                began = time.perf_counter()
                items = [
                    item
                    for video in encoded.videos
                    for item in video
                    if item.example.example_id in piece.needed
                ]
                answers = [_answer_ids(config, encoder, item.example) for item in items]
                seconds = (time.perf_counter() - began) / max(len(items), 1)
                records = [
                    _record(config, policy, encoder, item, token_ids, seconds)
                    for item, token_ids in zip(items, answers, strict=True)
                ]
                yield Batch(tuple(records), encoded.quarantined, len(piece.needed))

        yield compute


def _answer_ids(
    config: Config, encoder: ExampleEncoder, example: GroundingExample
) -> tuple[int, ...]:
    tokenizer = encoder.prompts.tokenizer
    text = template_of(config.prompt).format_answer(example.span)
    if encoder.prompts.opened_thought:
        text = f"\n{THOUGHT_ENDS}\n\n{text}"  # nothing was thought
    ids = tokenizer(text + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    return tuple(ids)


def _record(
    config: Config,
    policy: Policy,
    encoder: ExampleEncoder,
    item: EncodedExample,
    token_ids: tuple[int, ...],
    seconds: float,
) -> Rollout:
    example = item.example
    text = encoder.prompts.decode(token_ids)
    span = template_of(config.prompt).parse_span(text)
    return Rollout(
        rollout_id=make_rollout_id(policy.version, example.example_id, 0),
        policy_version=policy.version,
        policy_hash=SOURCE,
        answered_by=SOURCE,
        example_id=example.example_id,
        sample_index=0,
        seed=make_seed(config.run.seed, "rollout", policy.version, example.example_id, 0),
        prompt_token_ids=item.prompt.token_ids,
        completion_token_ids=token_ids,
        sampling_logprobs=None,
        finish_reason="stop",
        text=text,
        predicted_span=span,
        student_iou=answer_iou(span, *example.spans),
        frame_indices=item.clip.frame_indices,
        frame_timestamps=item.clip.timestamps,
        grid_thw=item.prompt.vision.grid_thw,
        pixel_hash=item.clip.pixel_hash,
        processor_hash=encoder.processor_hash,
        engine=SOURCE,
        engine_version=f"template {template_of(config.prompt).reader}",
        engine_mismatch=None,
        seconds=seconds,
        second_per_grid=item.prompt.vision.second_per_grid,
    )
