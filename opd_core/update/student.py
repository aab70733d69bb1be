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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from opd_core.config.load import Config
from opd_core.model.agreement import bound_for, served_dtype
from opd_core.model.ranks import ALONE, Ranks
from opd_core.model.tree_model import choose_device
from opd_core.prompts.batches import ExampleEncoder, cut_at_videos
from opd_core.types import (
    GroundingExample,
    Policy,
    TrainedRollout,
    UpdateStep,
    make_seed,
)
from opd_core.update.ready_steps import ready_steps
from opd_core.update.rows import TrainedRows
from opd_core.update.saved_step import Saving, StepsDone, StepStore
from opd_core.update.step_record import FirstStep
from opd_core.update.survey import Survey, survey
from opd_core.update.trained_model import TrainedModel


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
    rows: TrainedRows,
    staging: Path,
    on_step: Callable[[UpdateStep], None] = lambda _: None,
    base: Path | None = None,
    trainer: TrainerFolders = TrainerFolders(),
    restart_optimizer: bool = False,
    on_going_on: Callable[[int], None] = lambda _: None,
    ranks: Ranks = ALONE,
) -> UpdateResult:
    """Train `parent` on its own rollouts and write the new checkpoint into `staging`.

    `rows` are read a step at a time (`rows.py`); `base` is the folder of policy 0, which only
    `update.grpo.reference_kl` needs. The optimiser begins where the trainer has nothing
    of the parent, and where `restart_optimizer` (`continuation.py`) says so. `on_going_on` is told
    how many steps were made, where a killed update has saved one (`saved_step.py`). `ranks`: those
    that train it together and call this alike; the first one writes, and the others say the same.
    Raises
    `VideoOPDError` on rows of another policy, on log-probs that the sampler and the trainer do not
    agree on, and on a loss that is no number; the run is then as it was before.
    """
    settings = config.update
    plan = plan_steps(rows.examples, config, parent.version)
    goes_on = trainer.parent is not None and not restart_optimizer
    known = _surveyed(config, parent, plan, rows, "goes on" if goes_on else "begins", ranks)
    encoder = ExampleEncoder(config, parent.path)
    tokenizer = encoder.prompts.tokenizer
    student = TrainedModel(
        config, parent, tokenizer, base, trainer.parent, restart_optimizer, ranks
    )
    saving: Saving | None = None
    if trainer.steps is not None:
        saving = Saving(trainer.steps, known.key, settings.save_minutes, ranks)
    done = saving.taken_over(student) if saving else StepsDone()
    went_on_at = len(done.steps)
    if went_on_at:
        on_going_on(went_on_at)
    bound = bound_for(
        settings.max_logprob_mismatch,
        [served_dtype(config, engine, config.student.dtype) for engine in known.engines]
        + [config.student.dtype],
        choose_device(config.machine.device).type,
    )
    stopped: str | None = None
    if not went_on_at and known.run_before:
        parts = list(cut_at_videos(known.run_before, settings.examples_per_step))
        for ready in ready_steps(encoder, parts, rows, parent.version, ranks, scores=False):
            student.old.remember(ready.trees, ready.counted)
            del ready  # before the next one is read
    steps = ready_steps(encoder, plan[went_on_at:], rows, parent.version, ranks)
    for number in range(went_on_at, len(plan)):
        ready = next(steps)
        began = time.perf_counter()
        measured = student.accumulate(ready.trees, ready.counted, ready.facts(config))
        del ready
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
        for example in plan[number]:
            for rollout_id in rows.rollout_ids(example.example_id):
                seen = TrainedRollout(rollout_id, parent.version, number, logprobs[rollout_id])
                done.trained.setdefault(rollout_id, seen)
        done.steps.append(
            UpdateStep(
                step=number,
                loss=measured.loss,
                learning_rate=rate,
                grad_norm=grad_norm,
                tokens=measured.tokens,
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


def _surveyed(
    config: Config,
    parent: Policy,
    plan: Sequence[Sequence[GroundingExample]],
    rows: TrainedRows,
    begins_with: str,
    ranks: Ranks,
) -> Survey:
    """The first rank reads, the others are told."""

    def look() -> Survey | None:
        return survey(config, parent, plan, rows, begins_with) if ranks.first else None

    known = ranks.of_first(ranks.together(look))
    assert known is not None, "it is the first one's"
    return known


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
