"""Answers to examples: a policy's rollouts, the teacher's own predictions, greedy evaluation.

Each function is a stream of batches: the records that are ready to be appended, and what had to be
set aside. A batch is sampled together and therefore ready together; how examples are cut into
batches does not depend on what is already done, so a resumed stage computes the very same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeAlias, TypeVar

from opd_core import faults
from opd_core.config.load import Config
from opd_core.engines.base import (
    OpenedEngine,
    Refused,
    Request,
    Sample,
    SamplingParams,
    WorksElsewhere,
)
from opd_core.engines.gate import gate_of, mismatches
from opd_core.engines.in_turn import in_turn
from opd_core.engines.whole_answers import sampling
from opd_core.extensions import Quantise
from opd_core.hub.name import model_name
from opd_core.prompts.batches import EncodedBatch, EncodedExample, ExampleEncoder, cut_at_videos
from opd_core.spans.grounding import answer_iou
from opd_core.spans.protocols.known import judged
from opd_core.templates.own_prompt import template_of
from opd_core.types import (
    Batch,
    Evaluation,
    GroundingExample,
    ModelEvaluation,
    Policy,
    QuarantinedItem,
    Rollout,
    TeacherPrediction,
    make_rollout_id,
    make_seed,
)

Record = TypeVar("Record")
Answer: TypeAlias = Sequence[Sample] | Refused


def sample_rollouts(
    config: Config, policy: Policy, examples: Sequence[GroundingExample], done: set[str]
) -> Iterator[Batch[Rollout]]:
    """`rollouts_per_example` rollouts of each example; `done` are rollout ids that exist.

    `policy` gives the answers and the rows' policy_version: `sampler.sampler_of` of the round.
    """
    settings = config.rollout
    if settings.source == "truth":
        from opd_core.rollout.truth import truth_rollouts

        return truth_rollouts(config, policy, examples, done)

    def ids(example: GroundingExample) -> list[str]:
        count = settings.rollouts_per_example
        return [make_rollout_id(policy.version, example.example_id, i) for i in range(count)]

    def seeds(example: GroundingExample) -> tuple[int, ...]:
        return tuple(
            make_seed(config.run.seed, "rollout", policy.version, example.example_id, i)
            for i in range(settings.rollouts_per_example)
        )

    def record(
        item: EncodedExample, index: int, sample: Sample, asked: _Asked, seconds: float
    ) -> Rollout:
        text = asked.encoder.prompts.decode(sample.token_ids)
        span = template_of(config.prompt).parse_span(text)
        return Rollout(
            rollout_id=make_rollout_id(policy.version, item.example.example_id, index),
            policy_version=policy.version,
            policy_hash=policy.weights_hash,
            answered_by=settings.source,
            example_id=item.example.example_id,
            sample_index=index,
            seed=seeds(item.example)[index],
            prompt_token_ids=item.prompt.token_ids,
            completion_token_ids=sample.token_ids,
            sampling_logprobs=sample.logprobs,
            finish_reason=sample.finish_reason,
            text=text,
            predicted_span=span,
            student_iou=answer_iou(span, *item.example.spans),
            frame_indices=item.clip.frame_indices,
            frame_timestamps=item.clip.timestamps,
            grid_thw=item.prompt.vision.grid_thw,
            pixel_hash=item.clip.pixel_hash,
            processor_hash=asked.encoder.processor_hash,
            engine=asked.engine.name,
            engine_version=asked.engine.version,
            engine_mismatch=asked.mismatches.get((item.example.example_id, index)),
            seconds=seconds,
            second_per_grid=item.prompt.vision.second_per_grid,
        )

    params = SamplingParams(
        settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
    )
    from_teacher = settings.source == "teacher"
    work = _Work(
        "rollout",
        policy,
        settings.prompts_per_batch,
        params,
        seeds,
        config.teacher.dtype if from_teacher else config.student.dtype,
        settings.engine,
        compared=not from_teacher,  # a teacher may be too large for a forward of ours
        quantise=config.teacher.quantise if from_teacher else "none",
    )
    needed = [e for e in examples if not done.issuperset(ids(e))]
    return _answer(config, work, examples, {e.example_id for e in needed}, record)


def predict(
    config: Config,
    teacher: Policy,
    question_hash: str,
    examples: Sequence[GroundingExample],
    done: set[str],
) -> Iterator[Batch[TeacherPrediction]]:
    """The teacher's own k sampled answers (TRPV); `done` are example ids that have theirs.

    `question_hash`: `question_key.prediction_question` of the config.
    """

    def seeds(example: GroundingExample) -> tuple[int, ...]:
        # Not of the run's seed: predictions belong to a data set and a teacher, not to a run.
        return tuple(
            make_seed(0, f"predict {teacher.weights_hash}", 0, example.example_id, i)
            for i in range(config.teacher.predictions)
        )

    def record(
        item: EncodedExample, index: int, sample: Sample, asked: _Asked, seconds: float
    ) -> TeacherPrediction:
        text = asked.encoder.prompts.decode(sample.token_ids)
        span = template_of(config.prompt).parse_span(text)
        return TeacherPrediction(
            example_id=item.example.example_id,
            prediction_index=index,
            teacher_id=model_name(teacher.path),
            teacher_hash=teacher.weights_hash,
            question_hash=question_hash,
            text=text,
            predicted_span=span,
            iou=answer_iou(span, *item.example.spans),
            seed=seeds(item.example)[index],
            pixel_hash=item.clip.pixel_hash,
            reused_from=None,
        )

    settings = config.rollout
    params = SamplingParams(settings.max_new_tokens)
    work = _Work(
        "validate",
        teacher,
        settings.prompts_per_batch,
        params,
        seeds,
        config.teacher.dtype,
        config.teacher.engine,
        compared=False,  # a teacher may be too large for a forward of ours
        quantise=config.teacher.quantise,
    )
    needed = {e.example_id for e in examples} - done
    return _answer(config, work, examples, needed, record)


def evaluate(
    config: Config, policy: Policy, examples: Sequence[GroundingExample], done: set[str]
) -> Iterator[Batch[Evaluation]]:
    """One greedy answer an example; `done` are example ids that this policy has answered."""

    def record(
        item: EncodedExample, index: int, sample: Sample, asked: _Asked, seconds: float
    ) -> Evaluation:
        text = asked.encoder.prompts.decode(sample.token_ids)
        span = template_of(config.prompt).parse_span(text)
        return Evaluation(
            policy_version=policy.version,
            policy_hash=policy.weights_hash,
            example_id=item.example.example_id,
            text=text,
            completion_token_ids=sample.token_ids,
            finish_reason=sample.finish_reason,
            **judged(text, span, item.example.spans),
            engine=asked.engine.name,
            seconds=seconds,
        )

    settings = config.evaluate
    params = SamplingParams(settings.max_new_tokens, greedy=True)
    work = _Work(
        "evaluate",
        policy,
        settings.prompts_per_batch,
        params,
        lambda _: (0,),
        config.student.dtype,
        settings.engine,
        compared=True,
    )
    needed = {e.example_id for e in examples} - done
    return _answer(config, work, examples, needed, record)


def evaluate_model(
    config: Config,
    model: Policy,
    question_hash: str,
    examples: Sequence[GroundingExample],
    done: set[str],
) -> Iterator[Batch[ModelEvaluation]]:
    """Answers as `evaluate` gives them, of weights that are no policy of the run.

    `question_hash`: `question_key.evaluation_question` of the config.
    """
    for batch in evaluate(config, model, examples, done):
        records = []
        for answer in batch.records:
            content = {f.name: getattr(answer, f.name) for f in fields(answer)}
            digest, _ = content.pop("policy_hash"), content.pop("policy_version")
            records.append(
                ModelEvaluation(digest, question_hash, model_name(model.path), **content)
            )
        faults = tuple(
            replace(item, stage="evaluate model", policy_version=None) for item in batch.quarantined
        )
        yield Batch(tuple(records), faults, batch.examples)


@dataclass(frozen=True, slots=True)
class _Work:
    stage: str
    policy: Policy
    prompts_per_batch: int
    params: SamplingParams
    seeds: Callable[[GroundingExample], tuple[int, ...]]
    dtype: str
    engine: str
    compared: bool
    """Whether an example is also scored by the trainer's own forward."""
    quantise: Quantise = "none"


@dataclass(frozen=True, slots=True)
class _Asked:
    encoder: ExampleEncoder
    engine: OpenedEngine
    mismatches: dict[tuple[str, int], float]
    """(example id, sample index) -> what the gate measured."""


def _answer(
    config: Config,
    work: _Work,
    examples: Sequence[GroundingExample],
    needed: set[str],
    record: Callable[[EncodedExample, int, Sample, _Asked, float], Record],
) -> Iterator[Batch[Record]]:
    """Sample for the `needed` examples, batch by batch of the whole plan."""
    if not needed:
        return
    from opd_core.engines.choice import opened_engine, room_for

    plan = [
        batch
        for batch in cut_at_videos(examples, work.prompts_per_batch)
        if any(e.example_id in needed for e in batch)
    ]
    encoder = ExampleEncoder(config, work.policy.path)
    gate = gate_of(encoder, work.params.max_new_tokens)
    with opened_engine(
        config, work.engine, work.policy.path, work.dtype, encoder, quantise=work.quantise
    ) as engine:
        asked = _Asked(encoder, engine, {})
        room = room_for(config, work.engine, encoder, work.params.max_new_tokens)
        batches = encoder.encode_batches(
            plan,
            work.stage,
            work.policy.version,
            asks=True,
            room=room,
            among=examples,
            ahead=not isinstance(engine, WorksElsewhere),
        )

        def ask(encoded: EncodedBatch) -> Callable[[], Mapping[Hashable, Answer]]:
            requests = [
                [Request(i.example.example_id, i.prompt, work.seeds(i.example)) for i in video]
                for video in encoded.videos
            ]
            return sampling(engine, requests, work.params)

        ended = 0.0
        for batch, turn in zip(plan, in_turn(engine, batches, ask), strict=True):
            encoded = turn.encoded
            items = [item for video in encoded.videos for item in video]
            said = turn.answers()
            # Asked before the last batch was answered, it has waited for that.
            began, ended = max(turn.since, ended), time.perf_counter()
            seconds = ended - began
            faulty = gate.check(engine.name, items, said)
            answers = {k: a for k, a in said.items() if not isinstance(a, Refused)}
            fit = [i for i in items if i.example.example_id not in faulty]
            if work.compared and fit and not asked.mismatches:
                folder, dtype = work.policy.path, work.dtype
                asked.mismatches.update(
                    mismatches(config, folder, dtype, encoder, engine, fit[0], answers, fit)
                )
            quarantined = [
                *encoded.quarantined,
                *(
                    _quarantine(work, i, f"{engine.name}: {faulty[i.example.example_id]}")
                    for i in items
                    if i.example.example_id in faulty
                ),
            ]
            count = max(sum(len(a) for a in answers.values()), 1)
            records = [
                record(item, index, sample, asked, seconds / count)
                for item in fit
                if item.example.example_id in needed
                for index, sample in enumerate(answers[item.example.example_id])
            ]
            dealt = sum(e.example_id in needed for e in batch)
            yield Batch(tuple(records), tuple(quarantined), dealt)


def _quarantine(work: _Work, item: EncodedExample, reason: str) -> QuarantinedItem:
    return QuarantinedItem(
        item.example.example_id,
        work.stage,
        item.example.video_path,
        reason,
        work.policy.version,
        faults.ENGINE,
    )
