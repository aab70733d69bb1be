"""Doing again what the tables say was done, to compare: decode, sample, score.

A row's numbers depend in their last bits on the rows they were computed with, so whole batches are
done again, cut as the stages cut them; on a CPU in float32 the answers are then the same to the
last bit. Anywhere else (a GPU, bfloat16, another engine) sampling again may leave the path at any
token, so there the kept tokens are scored by the trainer's own forward, and log-probs are compared.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from opd_core.config.load import Config
from opd_core.extensions import ENGINES, TRAINER
from opd_core.model.agreement import EXACT, Bound, bound_for, served_dtype
from opd_core.model.tree_model import choose_device, set_threads
from opd_core.prompts.batches import ExampleEncoder, cut_at_videos
from opd_core.rollout.answers import sample_rollouts
from opd_core.scoring.trees import score_rollouts
from opd_core.types import (
    GroundingExample,
    Policy,
    Rollout,
    TeacherScore,
    VideoOPDError,
    make_rollout_id,
)

Answered = tuple[GroundingExample, Sequence[Rollout]]
"""An example with its rollouts."""

SEEN = ("processor_hash", "frame_indices", "frame_timestamps", "grid_thw", "second_per_grid",
        "pixel_hash", "prompt_token_ids")  # fmt: skip
"""What a rollout remembers of its prompt."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The first thing that is not as it was."""

    rollout_id: str
    what: str
    was: object
    now: object


@dataclass(frozen=True, slots=True)
class DoneAgain:
    """What was done again, and how far it is from what is kept."""

    rollouts: int
    tokens: int
    bitwise: bool
    """Whether equality to the last bit was asked for."""
    largest: float
    """Largest difference of a log-prob, nats."""
    difference: Difference | None


def prompts_again(config: Config, policy: Policy, rows: Sequence[Answered]) -> Iterator[DoneAgain]:
    """Decodes each example's video and builds its prompt again; one comparison an example.

    Sentences of one video are neighbours in `rows`. A video that cannot be read is a difference.
    """
    encoder = ExampleEncoder(config, policy.path)
    answers_of = {example.example_id: answers for example, answers in rows}
    batches = list(cut_at_videos([e for e, _ in rows], config.rollout.prompts_per_batch))
    for batch in encoder.encode_batches(batches, "audit", policy.version):
        for item in chain.from_iterable(batch.videos):
            now: dict[str, object] = {
                "processor_hash": encoder.processor_hash,
                "frame_indices": tuple(item.clip.frame_indices),
                "frame_timestamps": tuple(item.clip.timestamps),
                "grid_thw": tuple(item.prompt.vision.grid_thw),
                "second_per_grid": item.prompt.vision.second_per_grid,
                "pixel_hash": item.clip.pixel_hash,
                "prompt_token_ids": tuple(item.prompt.token_ids),
            }
            answers = answers_of[item.example.example_id]
            unlike = next((d for r in answers for d in _unlike(r, now)), None)
            yield DoneAgain(len(answers), 0, True, 0.0, unlike)
        for lost in batch.quarantined:
            first = answers_of[lost.item_id][0].rollout_id
            yield DoneAgain(0, 0, True, 0.0, Difference(first, "video", "readable", lost.reason))


def sampled_again(
    config: Config,
    policy: Policy,
    rows: Sequence[Answered],
    share: float,
    generator: random.Random,
    tolerance: float | None = None,
) -> DoneAgain:
    """Samples again `share` of the batches of a round (at least one), or scores them again.

    `rows`: what the round asked, in its order, each with what it has of answers.
    """
    set_threads(config.machine.threads)
    batches = list(cut_at_videos([e for e, _ in rows], config.rollout.prompts_per_batch))
    chosen = _share(batches, share, generator)
    wanted = {e.example_id for batch in chosen for e in batch}
    stored = {r.rollout_id: r for e, answers in rows if e.example_id in wanted for r in answers}
    versions = {r.engine_version for r in stored.values()}
    nobody = config.rollout.source == "truth"
    repeats = ENGINES[config.rollout.engine].repeats
    same_engine = repeats is not None and (nobody or versions <= {repeats()})
    if not (same_engine and _exact(config, config.student.dtype)):
        return _student_again(config, policy, [r for r in rows if r[0].example_id in wanted],
                              tolerance)  # fmt: skip
    count = config.rollout.rollouts_per_example
    done = {
        make_rollout_id(policy.version, e.example_id, i)
        for e, _ in rows if e.example_id not in wanted for i in range(count)
    }  # fmt: skip
    stream = sample_rollouts(config, policy, [e for e, _ in rows], done)
    pairs = []
    for batch in stream:
        for lost in batch.quarantined:
            if mine := [r for r in stored.values() if r.example_id == lost.item_id]:
                return _lost(mine[0].rollout_id, lost.reason)
        pairs += [
            (stored[now.rollout_id], now) for now in batch.records if now.rollout_id in stored
        ]
    apart: list[float] = []
    bound = Bound(tolerance) if tolerance else EXACT
    tokens, first = 0, None
    for was, now in pairs:
        tokens += len(was.completion_token_ids)
        for name in ("seed", "completion_token_ids", "text"):
            if first is None and _plain(was, name) != _plain(now, name):
                first = Difference(was.rollout_id, name, _plain(was, name), _plain(now, name))
        if first is None:
            values = (was.sampling_logprobs or (), now.sampling_logprobs or ())
            first = _logprobs(was.rollout_id, "sampling_logprobs", *values, bound, apart)
    return DoneAgain(len(pairs), tokens, not tolerance, max(apart, default=0.0), first)


def scored_again(
    config: Config,
    teacher: Policy,
    rows: Sequence[Answered],
    scores: Sequence[TeacherScore],
    share: float,
    generator: random.Random,
    tolerance: float | None = None,
    elsewhere: bool = False,
) -> DoneAgain:
    """Scores again `share` of the batches of a round (at least one).

    `elsewhere`: the scores were computed in other forward passes than this round's.
    """
    set_threads(config.machine.threads)
    answers = {example.example_id: r for example, r in rows}
    batches = list(cut_at_videos([example for example, _ in rows], config.score.prompts_per_batch))
    chosen = _share(batches, share, generator)
    exact = ENGINES[config.teacher.engine].repeats is not None and _exact(
        config, config.teacher.dtype
    )
    same = exact and not elsewhere
    bound = Bound(tolerance) if tolerance is not None else EXACT if same else _rounding(config)
    stored = {score.rollout_id: score for score in scores}
    together = [e for batch in chosen for e in batch]
    same_cut = list(cut_at_videos(together, config.score.prompts_per_batch)) == chosen
    apart: list[float] = []
    rollouts = 0
    for part in [together] if same_cut else chosen:
        work = [(e, answers[e.example_id]) for e in part]
        for batch in score_rollouts(config, teacher, work):
            for lost in batch.quarantined:
                difference = Difference(lost.item_id, "video", "readable", lost.reason)
                return _compared(rollouts, apart, bound, difference)
            for now in batch.records:
                was = stored[now.rollout_id]
                values = (was.teacher_logprobs, now.teacher_logprobs)
                unlike = _logprobs(was.rollout_id, "teacher_logprobs", *values, bound, apart)
                rollouts += 1
                if unlike:
                    return _compared(rollouts, apart, bound, unlike)
    return _compared(rollouts, apart, bound, _mean(bound, apart, scores, "teacher_logprobs"))


def _student_again(
    config: Config, policy: Policy, rows: Sequence[Answered], tolerance: float | None
) -> DoneAgain:
    """The kept tokens under the trainer's forward of the policy that sampled them."""
    teacher = config.teacher.model_copy(
        update={
            "engine": TRAINER,
            "dtype": config.student.dtype,
            "quantise": config.teacher.quantise if config.rollout.source == "teacher" else "none",
        }
    )
    score = config.score.model_copy(
        update={"teacher_topk": 0, "teacher_entropy": False, "hidden_states": False}
    )
    as_teacher = config.model_copy(update={"teacher": teacher, "score": score})
    largest = tolerance if tolerance is not None else config.rollout.max_engine_mismatch
    student = config.student.dtype
    dtypes = {served_dtype(config, r.engine, student) for _, rows_ in rows for r in rows_}
    device = choose_device(config.machine.device).type
    bound = bound_for(largest, sorted({*dtypes, student}), device)
    stored = {r.rollout_id: r for _, answers in rows for r in answers}
    work = [(e, answers) for e, answers in rows if answers]
    apart: list[float] = []
    for batch in score_rollouts(as_teacher, policy, work):
        for lost in batch.quarantined:
            return _lost(lost.item_id, lost.reason)
        for now in batch.records:
            was = stored[now.rollout_id]
            if was.sampling_logprobs is None:
                continue
            values = (was.sampling_logprobs, now.teacher_logprobs)
            if difference := _logprobs(was.rollout_id, "sampling_logprobs", *values, bound, apart):
                return _compared(len(stored), apart, bound, difference)
    difference = _mean(bound, apart, list(stored.values()), "sampling_logprobs")
    return _compared(len(stored), apart, bound, difference)


def _lost(item_id: str, reason: str) -> DoneAgain:
    return DoneAgain(0, 0, False, 0.0, Difference(item_id, "video", "readable", reason))


def _share(
    batches: Sequence[list[GroundingExample]], share: float, generator: random.Random
) -> list[list[GroundingExample]]:
    if not batches:
        raise VideoOPDError("there is nothing to do again in this round; audit one with rollouts")
    count = max(1, round(share * len(batches)))
    return [batches[i] for i in sorted(generator.sample(range(len(batches)), count))]


def _exact(config: Config, dtype: str) -> bool:
    return dtype == "float32" and choose_device(config.machine.device).type == "cpu"


def _rounding(config: Config) -> Bound:
    """What kernels and batches may make of a teacher's log-prob in its precision."""
    dtype = config.teacher.dtype
    served = served_dtype(config, config.teacher.engine, dtype)
    return bound_for(None, (dtype, served), choose_device(config.machine.device).type)


def _unlike(rollout: Rollout, now: dict[str, object]) -> Iterator[Difference]:
    for name in SEEN:
        was = _plain(rollout, name)
        if was != now[name]:
            yield Difference(rollout.rollout_id, name, was, now[name])


def _plain(rollout: Rollout, name: str) -> object:
    value = getattr(rollout, name)
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _logprobs(
    rollout_id: str,
    what: str,
    was: Sequence[float],
    now: Sequence[float],
    bound: Bound,
    apart: list[float],
) -> Difference | None:
    """The first token that is beyond the bound; all differences are added to `apart`."""
    if len(was) != len(now):
        return Difference(rollout_id, f"number of {what}", len(was), len(now))
    apart.extend(abs(a - b) for a, b in zip(was, now, strict=True))
    for position, (a, b) in enumerate(zip(was, now, strict=True)):
        if not abs(a - b) <= bound.largest:
            return Difference(rollout_id, f"{what}[{position}]", a, b)
    return None


def _mean(
    bound: Bound, apart: Sequence[float], rows: Sequence[Rollout | TeacherScore], what: str
) -> Difference | None:
    fault = bound.mean_fault(apart)
    if fault is None:
        return None
    name = f"mean difference of {what}, {len(apart)} tokens from here on,"
    return Difference(rows[0].rollout_id, name, f"at most {fault[1]:.4f}", round(fault[0], 4))


def _compared(
    rollouts: int, apart: Sequence[float], bound: Bound, difference: Difference | None
) -> DoneAgain:
    largest = max(apart, default=0.0)
    return DoneAgain(rollouts, len(apart), bound.largest == 0.0, largest, difference)
