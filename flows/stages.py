"""The stages of a round: read rows, compute with `opd_core`, append rows, return a small summary.

Each computes what has no row yet. Run again after a crash it does the missing part; run when
nothing is missing it costs a table scan. Rows are appended batch by batch as they are ready.

Prefect sees one task a stage. Its result cache stays off: it survives in the home folder and would
report work as done whose tables are gone.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeVar

import polars as pl
from prefect import task
from prefect.cache_policies import NO_CACHE

from flows import prediction_cache, score_cache
from flows.prepare import Work
from flows.progress import progress
from flows.summaries import StageSummary
from opd_core import curriculum
from opd_core.types import (
    Draw,
    GroundingExample,
    QuarantinedItem,
    Rollout,
    Selection,
    TeacherScore,
    Update,
    VideoOPDError,
    make_rollout_id,
    make_seed,
)
from storage.files import disk_troubles
from storage.policies import PolicyRef

R = TypeVar("R")
stage = task(cache_policy=NO_CACHE, persist_result=False)


@stage
def draw(work: Work, policy: PolicyRef) -> StageSummary:
    """Choose the round's examples: seeded by the policy's version, kept in `draws`."""
    began = time.perf_counter()
    settings = work.config.rollout
    present = _drawn(work, policy)
    if present:
        return StageSummary("draw", policy.version, 0, len(present), time.perf_counter() - began)
    unusable = set(curriculum.known_unreliable(work.predictions(), work.config.focus))
    unusable |= set(work.run.quarantine().select("item_id").collect()["item_id"])
    examples = work.run.read("examples", GroundingExample, pl.col("split") == "train")
    chosen = curriculum.draw_examples(
        [e for e in examples if e.example_id not in unusable],
        settings.examples_per_round,
        settings.max_queries_per_video,
        make_seed(work.config.run.seed, "draw", policy.version, "", 0),
        dict(work.run.draws().group_by("example_id").len().collect().iter_rows()),
    )
    if not chosen:
        raise VideoOPDError(
            f"none of the {len(examples)} training examples can be drawn: the teacher is "
            f"unreliable on them (focus.min_teacher_iou = {work.config.focus.min_teacher_iou}) or "
            "they are in quarantine; give more examples or lower the bound"
        )
    rows = [Draw(policy.version, e.example_id, i) for i, e in enumerate(chosen)]
    added = work.run.append("draws", rows, policy_version=policy.version)
    return StageSummary("draw", policy.version, added, len(rows), time.perf_counter() - began)


@stage
def validate(work: Work, policy: PolicyRef) -> StageSummary:
    """The teacher's own answers to the drawn examples (TRPV): once an example, teacher, question.

    None where the curriculum needs none; those that `teacher.cache` has are copied.
    """
    from opd_core.rollout import predict

    began = time.perf_counter()
    if not curriculum.needs_predictions(work.config.focus):
        return StageSummary("validate", policy.version, 0, 0, time.perf_counter() - began)
    examples = _drawn(work, policy)
    known = work.predictions().select("example_id").unique().collect()["example_id"].to_list()
    done = set(known) | _quarantined(work, policy, "validate")
    needed = [e.example_id for e in examples if e.example_id not in done]
    copies = prediction_cache.copies(work, needed)
    copied = work.run.append("teacher_predictions", copies, policy_version=policy.version)
    done |= {row.example_id for row in copies}
    asked = [example_id for example_id in needed if example_id not in done]
    teacher = _teacher(work, policy)
    batches = predict(work.config, teacher, work.question_hash, examples, done)
    summary = _append_batches(work, policy, "validate", "teacher_predictions", batches, len(asked))
    summary = replace(summary, rows=summary.rows + copied, seconds=time.perf_counter() - began)
    if work.config.teacher.cache is None or not needed:
        return summary
    reused = len(needed) - len(asked)
    return summary.noting(predictions_reused=reused, hit_rate=reused / len(needed))


@stage
def rollout(work: Work, policy: PolicyRef) -> StageSummary:
    """The policy's answers to the drawn examples on which the teacher is reliable."""
    from opd_core.rollout import sample_rollouts

    examples = _trainable(work, policy)
    done = set(_rollouts(work, policy).select("rollout_id").collect()["rollout_id"])
    # Left in the plan, but not asked again: how it is cut into batches must not depend on them.
    done |= {
        make_rollout_id(policy.version, example_id, index)
        for example_id in _quarantined(work, policy, "rollout")
        for index in range(work.config.rollout.rollouts_per_example)
    }
    missing = len(examples) - len(done) // work.config.rollout.rollouts_per_example
    batches = sample_rollouts(work.config, _policy(policy), examples, done)
    return _append_batches(work, policy, "rollout", "rollouts", batches, missing)


@stage
def score(work: Work, policy: PolicyRef) -> StageSummary:
    """The teacher's log-probs of the rollouts that focus can still select.

    A score of the same content, from another round or run, is copied instead (`score_cache.py`).
    """
    from opd_core.scoring import score_rollouts, teacher_scorer

    began = time.perf_counter()
    wanted = set(_candidates(work, policy))
    done = set(_scores(work, policy).select("rollout_id").collect()["rollout_id"])
    todo = wanted - done
    skipped = _quarantined(work, policy, "score")
    missing = [
        r
        for r in work.run.read("rollouts", Rollout, _of(policy))
        if r.rollout_id in todo and not {r.rollout_id, r.example_id} & skipped
    ]
    total = _rollouts(work, policy).select(pl.len()).collect().item()
    if not missing:
        summary = StageSummary("score", policy.version, 0, 0, time.perf_counter() - began)
        return summary.noting(teacher_passes_saved=total - len(wanted))
    scorer, teacher = teacher_scorer(work.config), _teacher(work, policy)
    plan = score_cache.plan(work, policy.version, scorer, missing)
    copied = sum(
        work.run.append("teacher_scores", rows, policy_version=policy.version)
        for rows in score_cache.copies(work, plan)
    )
    rollouts = _grouped(plan.scored)
    pairs = [
        (example, rollouts[example.example_id])
        for example in _drawn(work, policy)
        if example.example_id in rollouts
    ]
    batches = score_cache.with_twins(work, plan, score_rollouts(work.config, teacher, pairs))
    summary = _append_batches(work, policy, "score", "teacher_scores", batches, len(pairs))
    summary = replace(summary, rows=summary.rows + copied, seconds=time.perf_counter() - began)
    return summary.noting(
        teacher_passes_saved=total - len(wanted),
        scores_reused=plan.reused,
        hit_rate=plan.reused / len(missing),
    )


@stage
def focus(work: Work, policy: PolicyRef) -> StageSummary:
    """The curriculum: which rollouts are trained on, and why; kept in `selections`."""
    began = time.perf_counter()
    _check_complete(work, policy)
    prediction_cache.check_pixels(work, policy.version)
    settings, read = work.config.focus, work.run.tables.versions()
    seed = _focus_seed(work, policy)
    kls = _reverse_kls(work, policy) if curriculum.needs_scores(settings) else None
    chosen = curriculum.select(
        _rollouts(work, policy), work.predictions(), settings, seed, kls
    ).collect()
    if chosen.is_empty():
        raise VideoOPDError(
            f"round {policy.version} has no rollouts to select from: {_why_none(work, policy)}"
        )
    scored = _scores(work, policy).select("rollout_id").collect()["rollout_id"]
    unscored = pl.col("selected") & ~pl.col("rollout_id").is_in(scored.implode())
    skipped = list(_quarantined(work, policy, "score"))
    known = pl.col("rollout_id").is_in(skipped) | pl.col("example_id").is_in(skipped)
    waiting = set(chosen.filter(unscored & ~known)["rollout_id"])
    if waiting:
        raise VideoOPDError(
            f"{len(waiting)} rollouts of round {policy.version} have no teacher score yet, "
            f"{min(waiting)} among them; run the score stage first"
        )
    chosen = chosen.with_columns(
        reason=pl.when(unscored).then(pl.lit(curriculum.NO_SCORE)).otherwise("reason"),
        selected=pl.col("selected") & ~unscored,
    )
    count = int(chosen["selected"].sum())
    if not count:
        fix = "; lower focus.min_teacher_iou, or give easier examples"
        lost = [row for row in _given_up(work, policy) if row.stage == "score"]
        if lost:
            fix = f", the first because {lost[0].reason}; correct that and start a new run"
        raise VideoOPDError(
            f"focus selected none of the {len(chosen)} rollouts of round {policy.version} "
            f"({_reasons(chosen)}){fix}"
        )
    asked = work.question_hash if curriculum.needs_predictions(settings) else None
    rows = [
        Selection(
            **row,
            settings=settings.model_dump_json(),
            seed=seed,
            question_hash=asked,
            rollouts_version=read["rollouts"],
            predictions_version=read["teacher_predictions"],
            scores_version=read["teacher_scores"],
        )
        for row in chosen.sort("rollout_id").iter_rows(named=True)
    ]
    added = work.run.append("selections", rows, policy_version=policy.version)
    summary = StageSummary("focus", policy.version, added, added, time.perf_counter() - began)
    return summary.noting(selected=count, rollouts=len(chosen))


@stage
def update(work: Work, policy: PolicyRef) -> StageSummary:
    """Train on the selection and commit the next policy; the row in `updates` comes last."""
    from opd_core.student import Trained, plan_steps, update_student

    began = time.perf_counter()
    run = work.run
    if policy.version < run.current_policy().version:
        return StageSummary("update", policy.version, 0, 0, time.perf_counter() - began)
    selected = run.selections().filter(_of(policy) & pl.col("selected"))
    ids = set(selected.select("rollout_id").collect()["rollout_id"])
    if not ids:
        raise VideoOPDError(
            f"round {policy.version} has no selected rollouts; run the focus stage first"
        )
    sampled = run.read("rollouts", Rollout, _of(policy))
    rollouts = _grouped(r for r in sampled if r.rollout_id in ids)
    ours = _of(policy) & (pl.col("teacher_hash") == work.teacher_hash)
    rows = run.read("teacher_scores", TeacherScore, ours, without=("hidden_states",))
    scores = {s.rollout_id: s for s in rows}
    unscored = ids - scores.keys()
    if unscored:
        raise VideoOPDError(
            f"{len(unscored)} selected rollouts of round {policy.version} have no score of teacher "
            f"{work.config.teacher.path.name}, {min(unscored)} among them; put back the teacher "
            "that the round was selected with, or start a new run"
        )
    trained = [
        Trained(e, answers, tuple(scores[r.rollout_id] for r in answers))
        for e in _drawn(work, policy)
        if (answers := tuple(rollouts.get(e.example_id, ())))
    ]
    total = run.rollouts().filter(_of(policy)).select(pl.len()).collect().item()
    candidates = len(_candidates(work, policy))
    staging = run.staging_folder(policy.version + 1)
    steps = len(plan_steps([t.example for t in trained], work.config, policy.version))
    with progress("update", steps) as advance, disk_troubles(run.path):
        result = update_student(
            work.config, _policy(policy), trained, staging, lambda _: advance(1)
        )
    new = run.publish_policy(staging, policy)
    row = Update(
        policy_version=new.version,
        policy_hash=new.weights_hash,
        parent_version=policy.version,
        parent_hash=policy.weights_hash,
        checkpoint=run.relative(new.path),
        objective=work.config.update.objective,
        teacher_hash=work.teacher_hash,
        rollouts=len(result.trained),
        tokens=result.tokens,
        max_logprob_mismatch=result.max_logprob_mismatch,
        stopped_early=result.stopped_early,
        teacher_passes_saved=total - candidates,
        steps=result.steps,
        seconds=time.perf_counter() - began,
    )
    run.append("trained_rollouts", result.trained, policy_version=policy.version)
    run.append("updates", [row], policy_version=policy.version)
    summary = StageSummary("update", policy.version, 1, len(result.steps), row.seconds)
    return summary.noting(stopped_early=result.stopped_early)


@stage
def evaluate(work: Work, policy: PolicyRef) -> StageSummary:
    """Greedy answers of a policy to the eval split."""
    from opd_core.rollout import evaluate as answer

    examples = work.run.read("examples", GroundingExample, pl.col("split") == "eval")
    examples = curriculum.by_video(examples)[: work.config.evaluate.max_examples]
    known = work.run.evaluations().filter(_of(policy)).select("example_id").collect()
    done = set(known["example_id"]) | _quarantined(work, policy, "evaluate")
    batches = answer(work.config, _policy(policy), examples, done)
    missing = len([e for e in examples if e.example_id not in done])
    return _append_batches(work, policy, "evaluate", "evaluations", batches, missing)


def _append_batches(
    work: Work,
    policy: PolicyRef,
    name: str,
    table: str,
    batches: Iterable[Any],
    examples: int,
) -> StageSummary:
    began = time.perf_counter()
    added = quarantined = 0
    with progress(name, examples) as advance:
        for batch in batches:
            added += work.run.append(table, batch.records, policy_version=policy.version)
            quarantined += work.run.append(
                "quarantine", batch.quarantined, stage=name, policy_version=policy.version
            )
            advance(batch.examples)
    seconds = time.perf_counter() - began
    summary = StageSummary(name, policy.version, added, examples, seconds)
    return summary.noting(quarantined=quarantined or None)


def _of(policy: PolicyRef) -> pl.Expr:
    return pl.col("policy_version") == policy.version


def _policy(ref: PolicyRef) -> Any:
    from opd_core.rollout import Policy

    return Policy(ref.version, ref.path, ref.weights_hash)


def _teacher(work: Work, policy: PolicyRef) -> Any:
    """The teacher as something that answers; its version is the round it works for."""
    from opd_core.rollout import Policy

    return Policy(policy.version, work.config.teacher.path, work.teacher_hash)


def _drawn(work: Work, policy: PolicyRef) -> list[GroundingExample]:
    """The round's examples in the order of the draw."""
    draws = work.run.read("draws", Draw, _of(policy))
    if not draws:
        return []
    examples = {e.example_id: e for e in work.run.read("examples", GroundingExample)}
    return [examples[d.example_id] for d in sorted(draws, key=lambda d: d.position)]


def _trainable(work: Work, policy: PolicyRef) -> list[GroundingExample]:
    """Drawn examples of a reliable teacher that nothing is wrong with, in the order of the draw."""
    drawn = _drawn(work, policy)
    if not drawn:
        raise VideoOPDError(
            f"round {policy.version} has drawn no examples; run `videoopd/round`, which begins it"
        )
    if not curriculum.needs_predictions(work.config.focus):
        left_out = set()
    else:
        left_out = set(curriculum.known_unreliable(work.predictions(), work.config.focus))
        predicted = work.predictions().select("example_id").unique().collect()["example_id"]
        left_out |= {e.example_id for e in drawn} - set(predicted)
    left_out |= _quarantined(work, policy, "validate")
    usable = [e for e in drawn if e.example_id not in left_out]
    if not usable:
        raise VideoOPDError(
            f"none of the {len(drawn)} examples drawn for round {policy.version} can be answered: "
            f"{_why_none(work, policy)}"
        )
    return usable


def _rollouts(work: Work, policy: PolicyRef) -> pl.LazyFrame:
    columns = ("rollout_id", "example_id", "policy_version", "student_iou")
    return work.run.rollouts().filter(_of(policy)).select(columns)


def _scores(work: Work, policy: PolicyRef) -> pl.LazyFrame:
    mine = _of(policy) & (pl.col("teacher_hash") == work.teacher_hash)
    return work.run.teacher_scores().filter(mine)


def _candidates(work: Work, policy: PolicyRef) -> list[str]:
    return curriculum.candidates(
        _rollouts(work, policy), work.predictions(), work.config.focus, _focus_seed(work, policy)
    )


def _focus_seed(work: Work, policy: PolicyRef) -> int:
    return make_seed(work.config.run.seed, "focus", policy.version, "", 0)


def _reverse_kls(work: Work, policy: PolicyRef) -> pl.LazyFrame:
    answers = work.run.rollouts().filter(_of(policy)).select("rollout_id", "sampling_logprobs")
    scores = _scores(work, policy).select("rollout_id", "teacher_logprobs")
    return curriculum.mean_reverse_kls(answers, scores)


def _quarantined(work: Work, policy: PolicyRef, name: str) -> set[str]:
    return {row.item_id for row in _given_up(work, policy) if row.stage == name}


def _given_up(work: Work, policy: PolicyRef) -> list[QuarantinedItem]:
    return work.run.read("quarantine", QuarantinedItem, _of(policy))


def _check_complete(work: Work, policy: PolicyRef) -> None:
    """Focus decides once: raise while rollouts of the round are still to come."""
    unusable = _quarantined(work, policy, "rollout")
    expected = {
        make_rollout_id(policy.version, example.example_id, index)
        for example in _trainable(work, policy)
        if example.example_id not in unusable
        for index in range(work.config.rollout.rollouts_per_example)
    }
    missing = expected - set(_rollouts(work, policy).select("rollout_id").collect()["rollout_id"])
    if missing:
        raise VideoOPDError(
            f"{len(missing)} rollouts of round {policy.version} are still missing, {min(missing)} "
            "among them; run the rollout stage first"
        )


def _why_none(work: Work, policy: PolicyRef) -> str:
    """Why a round has no rollouts, and the fix."""
    rows = [row for row in _given_up(work, policy) if row.stage in ("validate", "rollout")]
    if rows:
        return (
            f"{len(rows)} are in quarantine, the first because {rows[0].reason}; correct that and "
            "start a new run"
        )
    if not curriculum.needs_predictions(work.config.focus):
        return "run the rollout stage first"
    return (
        "no example has answers of the teacher that reach focus.min_teacher_iou = "
        f"{work.config.focus.min_teacher_iou}; run `videoopd/round`, which asks it and then runs "
        "the rollout stage, or lower the bound"
    )


def _grouped(rollouts: Iterable[Rollout]) -> dict[str, list[Rollout]]:
    groups: dict[str, list[Rollout]] = {}
    for rollout in sorted(rollouts, key=lambda r: r.sample_index):
        groups.setdefault(rollout.example_id, []).append(rollout)
    return groups


def _reasons(chosen: pl.DataFrame) -> str:
    counts = chosen.group_by("reason").len().sort("len", descending=True)
    return ", ".join(f"{n} {reason}" for reason, n in counts.iter_rows())
