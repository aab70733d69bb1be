"""Answers to examples: a policy's rollouts, the teacher's own predictions, greedy evaluation.

Each function is a stream of batches: the records that are ready to be appended, and what had to be
set aside. A batch is sampled together and therefore ready together; how examples are cut into
batches does not depend on what is already done, so a resumed stage computes the very same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

from opd_core.cluster.computing import computed
from opd_core.cluster.work import cut
from opd_core.config.load import Config
from opd_core.engines.base import Sample, SamplingParams
from opd_core.extensions import Quantise
from opd_core.hub.name import model_name
from opd_core.prompts.batches import EncodedExample
from opd_core.rollout.answering import Answering, Asked
from opd_core.spans.grounding import answer_iou
from opd_core.spans.protocols.known import judged
from opd_core.templates.own_prompt import template_of
from opd_core.types import (
    Batch,
    Evaluation,
    GroundingExample,
    ModelEvaluation,
    Policy,
    Rollout,
    TeacherPrediction,
    make_rollout_id,
    make_seed,
)


def sample_rollouts(
    config: Config, policy: Policy, examples: Sequence[GroundingExample], done: set[str]
) -> Iterator[Batch[Rollout]]:
    """`rollouts_per_example` rollouts of each example; `done` are rollout ids that exist.

    `policy` gives the answers and the rows' policy_version: `sampler.sampler_of` of the round.
    """
    if config.rollout.source == "truth":
        from opd_core.rollout.truth import truth_rollouts

        return truth_rollouts(config, policy, examples, done)
    work = Sampling(config, policy)
    plan = cut(
        examples,
        config.rollout.prompts_per_batch,
        lambda e: not done.issuperset(work.rollout_ids(e)),
    )
    return computed(work, plan, examples)


@dataclass(frozen=True)
class Sampling(Answering[Rollout]):
    """The rollouts of a round."""

    stage = "rollout"

    @property
    def params(self) -> SamplingParams:
        settings = self.config.rollout
        return SamplingParams(
            settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
        )

    @property
    def engine(self) -> str:
        return self.config.rollout.engine

    @property
    def _by_teacher(self) -> bool:
        return self.config.rollout.source == "teacher"

    @property
    def dtype(self) -> str:
        return self.config.teacher.dtype if self._by_teacher else self.config.student.dtype

    @property
    def compared(self) -> bool:
        return not self._by_teacher  # which may be too large for a forward of ours

    @property
    def quantise(self) -> Quantise:
        return self.config.teacher.quantise if self._by_teacher else "none"

    def rollout_ids(self, example: GroundingExample) -> list[str]:
        each = range(self.config.rollout.rollouts_per_example)
        return [make_rollout_id(self.policy.version, example.example_id, i) for i in each]

    def seeds(self, example: GroundingExample) -> tuple[int, ...]:
        seed, version = self.config.run.seed, self.policy.version
        return tuple(
            make_seed(seed, "rollout", version, example.example_id, i)
            for i in range(self.config.rollout.rollouts_per_example)
        )

    def record(
        self, item: EncodedExample, index: int, sample: Sample, asked: Asked, seconds: float
    ) -> Rollout:
        policy = self.policy
        text = asked.encoder.prompts.decode(sample.token_ids)
        span = template_of(self.config.prompt).parse_span(text)
        return Rollout(
            rollout_id=make_rollout_id(policy.version, item.example.example_id, index),
            policy_version=policy.version,
            policy_hash=policy.weights_hash,
            answered_by=self.config.rollout.source,
            example_id=item.example.example_id,
            sample_index=index,
            seed=self.seeds(item.example)[index],
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
    per_batch = config.rollout.prompts_per_batch
    plan = cut(examples, per_batch, lambda e: e.example_id not in done)
    return computed(Predicting(config, teacher, question_hash), plan, examples)


@dataclass(frozen=True)
class Predicting(Answering[TeacherPrediction]):
    """What the teacher itself answers."""

    question_hash: str

    stage = "validate"

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(self.config.rollout.max_new_tokens)

    @property
    def engine(self) -> str:
        return self.config.teacher.engine

    @property
    def dtype(self) -> str:
        return self.config.teacher.dtype

    @property
    def compared(self) -> bool:
        return False  # a teacher may be too large for a forward of ours

    @property
    def quantise(self) -> Quantise:
        return self.config.teacher.quantise

    def seeds(self, example: GroundingExample) -> tuple[int, ...]:
        # Not of the run's seed: predictions belong to a data set and a teacher, not to a run.
        return tuple(
            make_seed(0, f"predict {self.policy.weights_hash}", 0, example.example_id, i)
            for i in range(self.config.teacher.predictions)
        )

    def record(
        self, item: EncodedExample, index: int, sample: Sample, asked: Asked, seconds: float
    ) -> TeacherPrediction:
        text = asked.encoder.prompts.decode(sample.token_ids)
        span = template_of(self.config.prompt).parse_span(text)
        return TeacherPrediction(
            example_id=item.example.example_id,
            prediction_index=index,
            teacher_id=model_name(self.policy.path),
            teacher_hash=self.policy.weights_hash,
            question_hash=self.question_hash,
            text=text,
            predicted_span=span,
            iou=answer_iou(span, *item.example.spans),
            seed=self.seeds(item.example)[index],
            pixel_hash=item.clip.pixel_hash,
            reused_from=None,
        )


def evaluate(
    config: Config, policy: Policy, examples: Sequence[GroundingExample], done: set[str]
) -> Iterator[Batch[Evaluation]]:
    """One greedy answer an example; `done` are example ids that this policy has answered."""
    per_batch = config.evaluate.prompts_per_batch
    plan = cut(examples, per_batch, lambda e: e.example_id not in done)
    return computed(Evaluating(config, policy), plan, examples)


@dataclass(frozen=True)
class Evaluating(Answering[Evaluation]):
    """Greedy answers."""

    stage = "evaluate"

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(self.config.evaluate.max_new_tokens, greedy=True)

    @property
    def engine(self) -> str:
        return self.config.evaluate.engine

    def seeds(self, example: GroundingExample) -> tuple[int, ...]:
        return (0,)

    def record(
        self, item: EncodedExample, index: int, sample: Sample, asked: Asked, seconds: float
    ) -> Evaluation:
        text = asked.encoder.prompts.decode(sample.token_ids)
        span = template_of(self.config.prompt).parse_span(text)
        return Evaluation(
            policy_version=self.policy.version,
            policy_hash=self.policy.weights_hash,
            example_id=item.example.example_id,
            text=text,
            completion_token_ids=sample.token_ids,
            finish_reason=sample.finish_reason,
            **judged(text, span, item.example.spans),
            engine=asked.engine.name,
            seconds=seconds,
        )


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
