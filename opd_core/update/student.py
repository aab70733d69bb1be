"""Update: a short run of optimiser steps on one round's selected rollouts (arXiv 2602.02994).

One forward and one backward pass a prefix tree; no second student pass for old log-probabilities,
because the sampler's were kept. Only where those are of another arithmetic and the loss needs the
trainer's own (`old_logprobs.py`), what later steps train on is run once before the first. On the
first step, before any weight has moved, the student's log-probs are those of the policy that
sampled: how far the two are apart is measured and bounded.

What is trained, and what of it is saved where, is in `trained_model.py`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from opd_core.config.load import Config
from opd_core.model.agreement import bound_for, served_dtype
from opd_core.model.prefix_tree import PrefixTree
from opd_core.model.ranks import ALONE, Ranks
from opd_core.model.tree_model import choose_device
from opd_core.prompts.batches import EncodedBatch, ExampleEncoder, cut_at_videos
from opd_core.scoring.trees import rollout_tree
from opd_core.types import (
    GroundingExample,
    Policy,
    Rollout,
    TeacherScore,
    TrainedRollout,
    UpdateStep,
    VideoOPDError,
    make_seed,
)
from opd_core.update.saved_step import Saving, StepsDone, StepStore, update_key
from opd_core.update.shares import share
from opd_core.update.step_record import FirstStep
from opd_core.update.trained_model import TrainedModel
from opd_core.update.training_loss import facts_of


@dataclass(frozen=True, slots=True)
class Trained:
    """An example of the update: its selected rollouts and their scores, side by side.

    A score is None where no objective needs the teacher.
    """

    example: GroundingExample
    rollouts: tuple[Rollout, ...]
    scores: tuple[TeacherScore | None, ...]


@dataclass(frozen=True, slots=True)
class UpdateResult:
    steps: tuple[UpdateStep, ...]
    trained: tuple[TrainedRollout, ...]
    tokens: int
    """Completion tokens of `trained`."""
    first_step: FirstStep | None
    """None on answers that the policy has not sampled."""
    stopped_early: str | None
    moved_share: float
    """Share of the trained weights that are others than before, in student.dtype."""
    went_on_at: int | None
    """The first step that this process made, where a killed one had saved those before it."""


@dataclass(frozen=True, slots=True)
class TrainerFolders:
    """Where the trainer keeps what no sampler loads (`trainer_state.py`)."""

    parent: Path | None = None
    """What the training of the parent left; None: nothing, or it is policy 0."""
    new: Path | None = None
    """A folder that is not there yet; None: the policy is not trained on."""
    steps: StepStore | None = None
    """Of the steps that a killed update goes on from; None: it begins with its first."""


def update_student(
    config: Config,
    parent: Policy,
    work: Sequence[Trained],
    staging: Path,
    on_step: Callable[[UpdateStep], None] = lambda _: None,
    base: Path | None = None,
    trainer: TrainerFolders = TrainerFolders(),
    restart_optimizer: bool = False,
    on_going_on: Callable[[int], None] = lambda _: None,
    ranks: Ranks = ALONE,
) -> UpdateResult:
    """Train `parent` on its own rollouts and write the new checkpoint into `staging`.

    `work` has the sentences of one video next to each other; `base` is the folder of policy 0,
    which only `update.grpo.reference_kl` needs. The optimiser begins where the trainer has nothing
    of the parent, and where `restart_optimizer` (`continuation.py`) says so. `on_going_on` is told
    how many steps were made, where a killed update has saved one (`saved_step.py`). `ranks`: those
    that train it together and call this alike; the first one writes, and the others say the same.
    Raises
    `VideoOPDError` on rows of another policy, on log-probs that the sampler and the trainer do not
    agree on, and on a loss that is no number; the run is then as it was before.
    """
    _check_on_policy(config, parent, work)
    settings = config.update
    encoder = ExampleEncoder(config, parent.path)
    tokenizer = encoder.prompts.tokenizer
    student = TrainedModel(
        config, parent, tokenizer, base, trainer.parent, restart_optimizer, ranks
    )
    plan = plan_steps([w.example for w in work], config, parent.version)
    facts = {
        fact.rollout.rollout_id: fact
        for w in work
        for fact in facts_of(config, w.rollouts, w.scores)
    }
    rollouts = {w.example.example_id: list(w.rollouts) for w in work}
    saving = _saving(config, parent, plan, work, trainer, restart_optimizer, ranks)
    done = saving.taken_over(student) if saving else StepsDone()
    went_on_at = len(done.steps)
    if went_on_at:
        on_going_on(went_on_at)
    bound = bound_for(
        settings.max_logprob_mismatch,
        [served_dtype(config, r.engine, config.student.dtype) for w in work for r in w.rollouts]
        + [config.student.dtype],
        choose_device(config.machine.device).type,
    )
    stopped: str | None = None
    if not went_on_at and (later := student.old.wanted(plan, rollouts)):
        parts = cut_at_videos(later, settings.examples_per_step)
        for trees, counted in _of_rank(encoder, list(parts), rollouts, parent.version, ranks):
            student.old.remember(trees, counted)
    steps = _of_rank(encoder, plan[went_on_at:], rollouts, parent.version, ranks)
    for number, (trees, counted) in enumerate(steps, start=went_on_at):
        began = time.perf_counter()
        answers = [r for example in plan[number] for r in rollouts[example.example_id]]
        tokens = sum(len(r.completion_token_ids) for r in answers)
        measured = student.accumulate(trees, counted, facts, [r.rollout_id for r in answers])
        if number == 0:
            done.first_step = measured.check_first_step(bound)
        policy_kl = measured.policy_kl()
        if policy_kl is not None and policy_kl > settings.max_policy_kl:
            stopped = (
                f"before step {number} the KL to the sampling policy was {policy_kl:.3f} nats a "
                f"token, above update.max_policy_kl = {settings.max_policy_kl}"
            )
            break
        rate, grad_norm = student.step(1 - number / len(plan))
        ratio_min, ratio_max = measured.ratio_range()
        logprobs = dict(measured.by_rollout())
        for rollout_id in (r.rollout_id for r in answers):
            seen = TrainedRollout(rollout_id, parent.version, number, logprobs[rollout_id])
            done.trained.setdefault(rollout_id, seen)
        done.steps.append(
            UpdateStep(
                step=number,
                loss=measured.loss,
                learning_rate=rate,
                grad_norm=grad_norm,
                tokens=tokens,
                rollouts=len(measured.keys),
                reverse_kl=measured.student_k1(),
                policy_kl=policy_kl,
                ratio_min=ratio_min,
                ratio_max=ratio_max,
                effective_sample_size=measured.effective_sample_size(),
                tis_weight_mean=measured.tis_weight_mean(),
                tis_truncated=measured.tis_truncated(),
                seconds=time.perf_counter() - began,
            )
        )
        on_step(done.steps[-1])
        if saving and number + 1 < len(plan):
            saving.step_made(done, student)
    moved = student.moved_share()
    student.save(staging, parent.path, trainer.new)
    trained = tuple(done.trained.values())
    return UpdateResult(
        tuple(done.steps),
        trained,
        sum(len(rollout.student_logprobs) for rollout in trained),
        done.first_step,
        stopped,
        moved,
        went_on_at or None,
    )


def _saving(
    config: Config,
    parent: Policy,
    plan: Sequence[Sequence[GroundingExample]],
    work: Sequence[Trained],
    trainer: TrainerFolders,
    restart_optimizer: bool,
    ranks: Ranks,
) -> Saving | None:
    if trainer.steps is None:
        return None
    pairs = [pair for w in work for pair in zip(w.rollouts, w.scores, strict=True)]
    goes_on = trainer.parent is not None and not restart_optimizer
    key = update_key(config, parent, plan, pairs, "goes on" if goes_on else "begins")
    return Saving(trainer.steps, key, config.update.save_minutes, ranks)


def plan_steps(
    examples: Sequence[GroundingExample], config: Config, version: int
) -> list[list[GroundingExample]]:
    """The examples of each optimiser step: `examples_per_step` or a little more, because a video
    is never parted; the videos shuffled anew each epoch, by seed."""
    settings = config.update
    videos = [list(group) for _, group in groupby(examples, key=lambda e: e.video_path)]
    steps: list[list[GroundingExample]] = []
    for epoch in range(settings.epochs):
        order = sorted(videos, key=lambda v: v[0].example_id)
        random.Random(make_seed(config.run.seed, "steps", version, "", epoch)).shuffle(order)
        batch: list[GroundingExample] = []
        for video in order:
            batch.extend(video)
            if len(batch) >= settings.examples_per_step:
                steps.append(batch)
                batch = []
        if batch:
            steps.append(batch)
    return steps[: settings.max_steps]


def _of_rank(
    encoder: ExampleEncoder,
    steps: Sequence[Sequence[GroundingExample]],
    rollouts: dict[str, list[Rollout]],
    version: int,
    ranks: Ranks,
) -> Iterator[tuple[list[PrefixTree], bool]]:
    """The trees of each step that this rank computes, and whether they count."""
    shares = [share(step, rollouts, ranks) for step in steps]
    batches = encoder.encode_batches([own.examples for own in shares], "update", version)
    for own in shares:
        yield ranks.together(lambda: _trees(next(batches), rollouts)), own.counted


def _trees(batch: EncodedBatch, rollouts: dict[str, list[Rollout]]) -> list[PrefixTree]:
    for item in batch.quarantined:
        raise VideoOPDError(
            f"{item.video_path}, on which selected rollouts stand, can no longer be used "
            f"({item.reason}); restore it and give the command again, or take its annotations "
            "out of data.train"
        )
    return [rollout_tree(video, rollouts) for video in batch.videos]


def _check_on_policy(config: Config, parent: Policy, work: Sequence[Trained]) -> None:
    """Every rollout is of the source that the config names; the student's own are of `parent`."""
    for item in work:
        for rollout, score in zip(item.rollouts, item.scores, strict=True):
            if rollout.answered_by != config.rollout.source:
                raise VideoOPDError(
                    f"rollout {rollout.rollout_id} is an answer of the {rollout.answered_by} and "
                    f"rollout.source is {config.rollout.source!r}; put back the config that the "
                    "round began with, or start a new run"
                )
            if rollout.answered_by == "student" and rollout.policy_hash != parent.weights_hash:
                raise VideoOPDError(
                    f"rollout {rollout.rollout_id} was sampled by policy {rollout.policy_version} "
                    f"(weights {rollout.policy_hash}) but the update trains policy "
                    f"{parent.version} (weights {parent.weights_hash}); a round trains on its own "
                    "rollouts only: rerun the rollout stage of this round"
                )
            if score is not None and score.rollout_id != rollout.rollout_id:
                raise ValueError(f"score of {score.rollout_id} beside {rollout.rollout_id}")
