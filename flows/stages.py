"""The stages of a round: read rows, compute with `opd_core`, append rows, return a small summary.

Each computes what has no row yet. Run again after a crash it does the missing part; run when
nothing is missing it costs a table scan; with `force` it begins again (`storage/runs/begun.py`).
Rows are appended as they come, `storage.flush_seconds` of work at a time
(`flows/stage/appending.py`).

Each is a Prefect task (`flows/stage/task.py`). Before it imports what it computes with it calls
`work.about_to_work()`, so that one with nothing to do costs neither Prefect nor torch (`alone.py`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import polars as pl

from flows.console.progress import mention, progress
from flows.console.step_line import step_line
from flows.stage import prediction_cache, score_cache, uses
from flows.stage import rows as round_rows
from flows.stage.appending import appending
from flows.stage.given_up import given_up
from flows.stage.prepare import Work
from flows.stage.read_data import changes_of_round
from flows.stage.task import StageFunction as stage
from flows.stage.trained_rows import trained_rows
from flows.summaries import Done
from opd_core.cluster import losses
from opd_core.faults import NEXT_ROUND
from opd_core.focus import select as curriculum
from opd_core.rollout.by_example import by_example
from opd_core.types import (
    Batch,
    Draw,
    GroundingExample,
    Policy,
    Rollout,
    Selection,
    TeacherScore,
    Update,
    UpdateStep,
    VideoOPDError,
    make_rollout_id,
    make_seed,
)
from opd_core.video.presence import refuse_missing
from storage.files import disk_troubles
from storage.runs.begun import Begun
from storage.tables.schemas import TABLES


@stage
def draw(work: Work, policy: Policy, begun: Begun) -> Done:
    """Choose the round's examples: seeded by the policy's version, kept in `draws`.

    Each forced draw has a seed of its own.
    """
    work.continuation(policy)
    settings = work.config.rollout
    present = round_rows.drawn(work, policy)
    if present and not begun.again:
        return Done(0, len(present))
    work.about_to_work()
    unusable = set(curriculum.known_unreliable(work.predictions(), work.config.focus))
    unusable |= given_up(work, policy)
    examples = work.run.present_examples(pl.col("split") == "train")
    forced = work.run.takes().times_forced("draw", policy.version) + begun.forced
    earlier = work.run.draws().filter(pl.col("policy_version") < policy.version)
    chosen = curriculum.draw_examples(
        examples,
        settings.examples_per_round,
        settings.max_queries_per_video,
        make_seed(work.config.run.seed, "draw", policy.version, "", forced),
        dict(earlier.group_by("example_id").len().collect().iter_rows()),
        unusable,
    )
    if not chosen:
        raise VideoOPDError(
            f"none of the {len(examples)} training examples can be drawn: the teacher is "
            f"unreliable on them (focus.min_teacher_iou = {work.config.focus.min_teacher_iou}) or "
            "they are in quarantine; give more examples or lower the bound"
        )
    refuse_missing(
        work.config.data.videos,
        (e.video_path for e in chosen),
        annotated=lambda: (e.video_path for e in examples),
    )
    begun.new_take()
    rows = [Draw(policy.version, e.example_id, i) for i, e in enumerate(chosen)]
    added = work.run.append("draws", rows, policy_version=policy.version)
    return Done(added, len(rows), {"annotations": changes_of_round(work.run, policy.version)})


@stage
def validate(work: Work, policy: Policy, begun: Begun) -> Done:
    """The teacher's own answers to the drawn examples (TRPV): once an example, teacher, question.

    None where the curriculum needs none; those that `teacher.cache` has are copied. They belong to
    no round, and a question has one seed, so there is nothing to force.
    """
    if not curriculum.needs_predictions(work.config.focus):
        return Done()
    left_out = round_rows.gone(work, policy)
    examples = [e for e in round_rows.needed(work, policy) if e.example_id not in left_out]
    known = work.predictions().select("example_id").unique().collect()["example_id"].to_list()
    done = set(known) | round_rows.quarantined(work, policy, "validate")
    needed = [e.example_id for e in examples if e.example_id not in done]
    if not needed:
        return Done()
    work.about_to_work()
    from opd_core.rollout.answers import predict

    copies = [
        row
        for teacher in work.teachers
        for row in prediction_cache.copies(teacher, [e for e in needed if teacher.takes(e)])
    ]
    copied = work.run.append("teacher_predictions", copies, policy_version=policy.version)
    done |= {row.example_id for row in copies}
    asked = [example_id for example_id in needed if example_id not in done]
    batches = chain.from_iterable(
        predict(t.config, t.policy(policy.version), t.question_to_ask, t.own(examples), done)
        for t in work.teachers
    )
    reused = len(needed) - len(asked) if work.teachers.caches else None
    return _append_batches(
        work, policy, "teacher_predictions", batches, len(asked), copied,
        predictions_reused=reused, hit_rate=None if reused is None else reused / len(needed),
    )  # fmt: skip


@stage
def rollout(work: Work, policy: Policy, begun: Begun) -> Done:
    """The policy's answers to the drawn examples on which the teacher is reliable.

    Of a baseline: policy 0's, the teacher's, or the truth (`rollout.source`).
    """
    work.continuation(policy)
    examples = round_rows.trainable(work, policy)
    begun.new_take()
    done = set(round_rows.rollouts(work, policy).select("rollout_id").collect()["rollout_id"])
    # Left in the plan, but not asked again: how it is cut into batches must not depend on them.
    done |= {
        make_rollout_id(policy.version, example_id, index)
        for example_id in round_rows.quarantined(work, policy, "rollout")
        for index in range(work.config.rollout.rollouts_per_example)
    }
    each = range(work.config.rollout.rollouts_per_example)
    wanted = {
        make_rollout_id(policy.version, e.example_id, i): e.example_id
        for e in examples
        for i in each
    }
    if wanted.keys() <= done:
        return Done()
    work.about_to_work()
    from opd_core.rollout.answers import sample_rollouts

    missing = len(
        {example_id for rollout_id, example_id in wanted.items() if rollout_id not in done}
    )
    batches = chain.from_iterable(
        sample_rollouts(config, sampler, own, done)
        for config, sampler, own in work.samplers(policy.version, examples)
    )
    return _append_batches(work, policy, "rollouts", batches, missing)


@stage
def score(work: Work, policy: Policy, begun: Begun) -> Done:
    """The teacher's log-probs of the rollouts that focus can still select.

    A score of the same content, from another round or run, is copied instead
    (`flows/stage/score_cache.py`), unless this one is forced.
    """
    if not round_rows.needs_scores(work):
        return Done()
    begun.new_take()
    round_rows.refuse_other_scores(work, policy)
    wanted = set(round_rows.candidates(work, policy))
    done = set(round_rows.scores(work, policy).select("rollout_id").collect()["rollout_id"])
    todo = wanted - done
    skipped = round_rows.quarantined(work, policy, "score")
    missing = [
        (rollout_id, example_id)
        for rollout_id, example_id in round_rows.answered(work, policy)
        if rollout_id in todo and not {rollout_id, example_id} & skipped
    ]
    total = round_rows.rollouts(work, policy).select(pl.len()).collect().item()
    saved = total - len(wanted)
    if not missing:
        return Done(notes={"teacher_passes_saved": saved})
    work.about_to_work()
    from opd_core.scoring.trees import score_examples, teacher_scorer

    plans = []
    for teacher in work.teachers:
        own = [rollout_id for rollout_id, example_id in missing if teacher.takes(example_id)]
        if not own:  # one that is elsewhere need not be there
            continue
        unscored = round_rows.read_rollouts(work, own)
        scorer = teacher_scorer(teacher.config)
        plans.append(score_cache.plan(work, teacher, policy.version, scorer, unscored))
    copied = sum(
        work.run.append("teacher_scores", rows, policy_version=policy.version)
        for plan in plans
        for rows in score_cache.copies(work, plan)
    )
    drawn = round_rows.drawn(work, policy)

    def scored_by(plan: score_cache.Plan) -> Iterator[Batch[TeacherScore]]:
        ids: dict[str, list[str]] = {}
        for one in plan.scored:
            ids.setdefault(one.example_id, []).append(one.rollout_id)

        def rollouts_of(some: Sequence[GroundingExample]) -> dict[str, list[Rollout]]:
            asked = [rollout_id for e in some for rollout_id in ids[e.example_id]]
            return by_example(round_rows.read_rollouts(work, asked))

        own = plan.teacher.own(drawn)
        examples = [e for e in own if e.example_id in ids]
        among = [e for e in own if e.example_id not in skipped]
        longest = max((one.tokens for one in plan.scored), default=0)
        config, teacher = plan.teacher.config, plan.teacher.policy(policy.version)
        scored = score_examples(config, teacher, examples, longest, rollouts_of, among)
        return score_cache.with_twins(work, plan, scored)

    batches = chain.from_iterable(scored_by(plan) for plan in plans)
    reused = sum(plan.reused for plan in plans)
    asked = len({one.example_id for plan in plans for one in plan.scored})
    return _append_batches(
        work, policy, "teacher_scores", batches, asked, copied,
        teacher_passes_saved=saved, scores_reused=reused, hit_rate=reused / len(missing),
    )  # fmt: skip


@stage
def focus(work: Work, policy: Policy, begun: Begun) -> Done:
    """The curriculum: which rollouts are trained on, and why; kept in `selections`."""
    removed = round_rows.gone(work, policy)
    selections = work.run.selections().filter(round_rows.of_round(policy)).collect()
    committed = policy.version < work.run.current_policy().version
    if selections.height and committed and not begun.again:
        return Done()
    round_rows.check_complete(work, policy)
    prediction_cache.check_pixels(work, policy.version)
    settings, read = work.config.focus, work.run.tables.versions()
    seed = round_rows.focus_seed(work, policy)
    kls = round_rows.sampling_k1s(work, policy) if curriculum.needs_scores(settings) else None
    chosen = curriculum.select(
        round_rows.rollouts(work, policy), work.predictions(), settings, seed, kls
    ).collect()
    if chosen.is_empty():
        raise VideoOPDError(
            f"round {policy.round} has no rollouts to select from: "
            f"{round_rows.why_none(work, policy)}"
        )
    scored = round_rows.scores(work, policy).select("rollout_id").collect()["rollout_id"]
    unscored = pl.col("selected") & ~pl.col("rollout_id").is_in(scored.implode())
    unscored &= pl.lit(round_rows.needs_scores(work))
    skipped = list(round_rows.quarantined(work, policy, "score"))
    known = pl.col("rollout_id").is_in(skipped) | pl.col("example_id").is_in(skipped)
    waiting = set(chosen.filter(unscored & ~known)["rollout_id"])
    if waiting:
        raise VideoOPDError(
            f"{len(waiting)} rollouts of round {policy.round} have no teacher score yet, "
            f"{min(waiting)} among them; run the score stage first"
        )
    chosen = chosen.with_columns(
        reason=pl.when(unscored).then(pl.lit(curriculum.NO_SCORE)).otherwise("reason"),
        selected=pl.col("selected") & ~unscored,
    )
    count = int(chosen["selected"].sum())
    if not count:
        fix = "; lower focus.min_teacher_iou, or give easier examples"
        lost = [r for r in round_rows.set_aside(work, policy) if r.stage == "score"]
        if lost:
            fix = f", the first because {lost[0].reason}; correct that and start a new run"
        raise VideoOPDError(
            f"focus selected none of the {len(chosen)} rollouts of round {policy.round} "
            f"({round_rows.reasons(chosen)}){fix}"
        )
    asks = curriculum.needs_predictions(settings)
    if not set(chosen["rollout_id"]) <= set(selections["rollout_id"]):
        work.about_to_work()
    lost_some = round_rows.selected_of(selections, removed)
    begun.new_take("annotations were removed" if lost_some else None)
    chosen = pl.concat([chosen, round_rows.left_out_by(work, policy, removed, chosen)])
    rows = [
        Selection(
            **row,
            settings=settings.model_dump_json(),
            seed=seed,
            question_hash=work.teachers.question_of(row["example_id"]) if asks else None,
            rollouts_version=read["rollouts"],
            predictions_version=read["teacher_predictions"],
            scores_version=read["teacher_scores"],
        )
        for row in chosen.sort("rollout_id").iter_rows(named=True)
    ]
    added = work.run.append("selections", rows, policy_version=policy.version)
    return Done(added, added, {"selected": count, "rollouts": len(chosen)})


@stage
def update(work: Work, policy: Policy, begun: Begun) -> Done:
    """Train on the selection and commit the next policy; the row in `updates` comes last.

    Begun again in a past round, it supersedes all that was made with later policies.
    """
    run = work.run
    if policy.version < run.current_policy().version and not begun.again:
        return Done()
    work.about_to_work()
    began = time.perf_counter()
    from opd_core.update.on_cluster import Asked, update_asked
    from opd_core.update.student import TrainerFolders, plan_steps

    restart = work.continuation(policy)
    rows = trained_rows(work, policy)
    saved, running = run.saved_steps(), run.running_steps()
    if begun.again:
        saved.clear()
    if saved.newest() is None:
        running.clear()
    begun.new_take()
    total = run.rollouts().filter(round_rows.of_round(policy)).select(pl.len()).collect().item()
    uses_scores = round_rows.needs_scores(work)
    candidates = len(round_rows.candidates(work, policy)) if uses_scores else 0
    staging = run.staging_folder(policy.version + 1)
    trainer = TrainerFolders(
        run.trainer_folder(policy), run.trainer_staging(policy.version + 1), saved
    )
    steps = len(plan_steps(rows.examples, work.config, policy.version))
    before = losses.total()
    with progress("update", steps) as advance, disk_troubles(run.path):

        def going_on(done: int) -> None:
            mention(f"update: goes on at step {done} of {steps}")
            running.go_on_at(policy.version + 1, done)
            advance(done, made_before=True)

        def made(step: UpdateStep) -> None:
            running.add(policy.version + 1, step)
            advance(1, saying=step_line(step))

        asked = Asked(
            work.config,
            policy,
            rows,
            staging,
            run.policy(0).path,
            trainer,
            restart is not None,
        )
        result = update_asked(asked, made, going_on)
    new = run.publish_policy(staging, policy, trainer.new)
    first = result.first_step
    row = Update(
        policy_version=new.version,
        policy_hash=new.weights_hash,
        parent_version=policy.version,
        parent_hash=policy.weights_hash,
        checkpoint=run.relative(new.path),
        objective=work.config.objective_text,
        uses_scores=uses_scores,
        teacher_hash=work.teachers.joined_hash,
        rollouts=len(result.trained),
        tokens=result.tokens,
        max_logprob_mismatch=None if first is None else first.largest,
        stopped_early=result.stopped_early,
        optimizer_restarted=restart,
        teacher_passes_saved=total - candidates,
        steps=result.steps,
        seconds=time.perf_counter() - began,
        mean_logprob_mismatch=None if first is None else first.mean,
        logprob_bound=None if first is None else first.largest_bound,
        mean_logprob_bound=None if first is None else first.mean_bound,
        moved_share=result.moved_share,
        stages=uses.of_round(run.path, policy.version),
    )
    run.append("trained_rollouts", result.trained, policy_version=policy.version)
    run.append("updates", [row], policy_version=policy.version)
    run.keep_newest_trainer()
    saved.clear()
    running.clear()
    uses.forget(run.path)
    notes = {
        "stopped_early": result.stopped_early,
        "optimizer_restarted": restart,
        "went_on_at_step": result.went_on_at,
        "workers_lost": losses.total().since(before).workers or None,
    }
    return Done(1, len(result.steps), notes, mismatch=row.max_logprob_mismatch)


@stage
def evaluate(work: Work, policy: Policy, begun: Begun) -> Done:
    """Greedy answers of a policy to the eval split."""
    begun.new_take()
    examples = round_rows.eval_examples(work)
    known = (
        work.run.evaluations().filter(round_rows.of_round(policy)).select("example_id").collect()
    )
    done = set(known["example_id"]) | round_rows.quarantined(work, policy, "evaluate", NEXT_ROUND)
    missing = len([e for e in examples if e.example_id not in done])
    if not missing:
        return Done()
    work.about_to_work()
    from opd_core.rollout.answers import evaluate as answer

    batches = answer(work.config, policy, examples, done)
    return _append_batches(work, policy, "evaluations", batches, missing)


def _append_batches(
    work: Work,
    policy: Policy,
    table: str,
    batches: Iterable[Any],
    examples: int,
    copied: int = 0,
    **notes: float | None,
) -> Done:
    """What is computed of so many examples goes to the table, where `copied` rows are already."""
    name = str(TABLES[table].writer)
    flush_seconds = work.config.storage.flush_seconds
    before = losses.total()
    largest: float | None = None
    with (
        progress(name, examples) as advance,
        appending(work.run, table, name, policy.version, flush_seconds) as rows,
    ):
        for batch in batches:
            rows.add(batch)
            advance(batch.examples)
            measured = (getattr(row, "engine_mismatch", None) for row in batch.records)
            known = [largest, *measured]
            largest = max((one for one in known if one is not None), default=None)
    lost = losses.total().since(before)
    trouble: dict[str, float | None] = {
        "quarantined": rows.quarantined or None,
        "workers_lost": lost.workers or None,
        "done_again": lost.again or None,
    }
    return Done(copied + rows.added, examples, trouble | notes, copied, largest)
