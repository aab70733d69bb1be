"""What a round's tables hold for its stages: who was drawn, what is answered, scored, given up.

Reads only. Each function is of a run (`work`) and the policy that the round samples from, and sees
the rows in force.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import polars as pl

from flows.stage.prepare import Work
from flows.stage.typed_config import config_words
from flows.teachers import EXAMPLE_OF_ROLLOUT
from opd_core.focus import select as curriculum
from opd_core.scoring.score_key import quantised_in
from opd_core.types import (
    Draw,
    GroundingExample,
    Policy,
    QuarantinedItem,
    Rollout,
    VideoOPDError,
    make_rollout_id,
    make_seed,
)
from storage.stages import stage_command

ROLLOUTS_AT_ONCE = 256


def of_round(policy: Policy) -> pl.Expr:
    return pl.col("policy_version") == policy.version


def drawn(work: Work, policy: Policy) -> list[GroundingExample]:
    """The round's examples in the order of the draw."""
    draws = work.run.read("draws", Draw, of_round(policy))
    if not draws:
        return []
    mine = pl.col("example_id").is_in([d.example_id for d in draws])
    examples = {e.example_id: e for e in work.run.last_known_examples(mine)}
    return [examples[d.example_id] for d in sorted(draws, key=lambda d: d.position)]


def gone(work: Work, policy: Policy) -> set[str]:
    """Ids of drawn examples that the training annotations no longer hold. The draw stays what it
    was, and nothing more is done with them."""
    drawn_ids = work.run.draws().filter(of_round(policy)).select("example_id").collect()
    train = work.run.present().filter(pl.col("split") == "train").select("example_id").collect()
    return set(drawn_ids["example_id"]) - set(train["example_id"])


def eval_examples(work: Work) -> list[GroundingExample]:
    """What a policy is asked: the eval split as it is now, or its first `evaluate.max_examples`."""
    examples = curriculum.by_video(work.run.present_examples(pl.col("split") == "eval"))
    return examples[: work.config.evaluate.max_examples]


def needed(work: Work, policy: Policy) -> list[GroundingExample]:
    """The round's examples, as `drawn`. Raises `VideoOPDError` where nothing was drawn yet."""
    examples = drawn(work, policy)
    if not examples:
        raise VideoOPDError(
            f"round {policy.round} has drawn no examples; run `videoopd run`, or the stage draw, "
            "which begins it"
        )
    return examples


def trainable(work: Work, policy: Policy) -> list[GroundingExample]:
    """Drawn examples of a reliable teacher that nothing is wrong with, in the order of the draw."""
    examples = needed(work, policy)
    if not curriculum.needs_predictions(work.config.focus):
        left_out = set()
    else:
        left_out = set(curriculum.known_unreliable(work.predictions(), work.config.focus))
        predicted = work.predictions().select("example_id").unique().collect()["example_id"]
        left_out |= {e.example_id for e in examples} - set(predicted)
    left_out |= quarantined(work, policy, "validate") | gone(work, policy)
    usable = [e for e in examples if e.example_id not in left_out]
    if not usable:
        raise VideoOPDError(
            f"none of the {len(examples)} examples drawn for round {policy.round} can be "
            f"answered: {why_none(work, policy)}"
        )
    return usable


def rollouts(work: Work, policy: Policy) -> pl.LazyFrame:
    """The round's rollouts of examples that are still annotated."""
    columns = ("rollout_id", "example_id", "policy_version", "student_iou")
    mine = work.run.rollouts().filter(of_round(policy)).select(columns)
    return mine.filter(~pl.col("example_id").is_in(list(gone(work, policy))))


def answered(work: Work, policy: Policy) -> list[tuple[str, str]]:
    """(rollout id, example id) of all rollouts of the round, in the order they were written."""
    rows = work.run.rollouts().filter(of_round(policy)).select("rollout_id", "example_id")
    return list(rows.collect().iter_rows())


def read_rollouts(work: Work, rollout_ids: Sequence[str]) -> Iterator[Rollout]:
    """Those rollouts, read in parts: each has thousands of prompt tokens."""
    for start in range(0, len(rollout_ids), ROLLOUTS_AT_ONCE):
        part = pl.col("rollout_id").is_in(rollout_ids[start : start + ROLLOUTS_AT_ONCE])
        yield from work.run.read("rollouts", Rollout, part)


def scores(work: Work, policy: Policy) -> pl.LazyFrame:
    """The round's scores, each by its example's own teacher."""
    return work.run.teacher_scores().filter(of_round(policy) & work.teachers.scores())


def refuse_other_scores(work: Work, policy: Policy) -> None:
    """Raise `VideoOPDError` where the round has scores by a teacher quantised otherwise than the
    config says, or by another one of several than the example's: a round's scores are of one kind.
    """
    command = stage_command("score", config_words(work.run), policy.round, force=True)
    of_round_scores = work.run.teacher_scores().filter(of_round(policy))
    for teacher in work.teachers:
        mine = of_round_scores.filter(teacher.rows(EXAMPLE_OF_ROLLOUT))
        scorers = mine.select(pl.col("scorer").unique()).collect()["scorer"]
        wanted = teacher.config.teacher.quantise
        if other := {quantised_in(scorer) for scorer in scorers} - {wanted}:
            raise VideoOPDError(
                f"round {policy.round} has scores with teacher.quantise = {min(other)!r}, and the "
                f"config says {wanted!r}; put that back, or score it again with `{command}`"
            )
    ours = pl.col("teacher_hash").is_in([teacher.weights_hash for teacher in work.teachers])
    stray = of_round_scores.filter(ours & ~work.teachers.scores()).select("rollout_id").collect()
    if stray.height:
        raise VideoOPDError(
            f"round {policy.round} has scores of {stray.height} rollouts, "
            f"{min(stray['rollout_id'])} among them, by another one of [[teachers]] than takes "
            f"their examples now; put `takes` back, or score it again with `{command}`"
        )


def needs_scores(work: Work) -> bool:
    """Whether the objective is made of the teacher's scores, or the selection."""
    return work.config.needs_teacher_scores or curriculum.needs_scores(work.config.focus)


def candidates(work: Work, policy: Policy) -> list[str]:
    return curriculum.candidates(
        rollouts(work, policy), work.predictions(), work.config.focus, focus_seed(work, policy)
    )


def focus_seed(work: Work, policy: Policy) -> int:
    return make_seed(work.config.run.seed, "focus", policy.version, "", 0)


def sampling_k1s(work: Work, policy: Policy) -> pl.LazyFrame:
    answers = work.run.rollouts().filter(of_round(policy)).select("rollout_id", "sampling_logprobs")
    scored = scores(work, policy).select("rollout_id", "teacher_logprobs")
    return curriculum.sampling_k1s(answers, scored)


def set_aside(work: Work, policy: Policy) -> list[QuarantinedItem]:
    """What the round could not use, in the order in which that was found."""
    return work.run.read("quarantine", QuarantinedItem, of_round(policy))


def quarantined(work: Work, policy: Policy, stage: str, but: Collection[str] = ()) -> set[str]:
    """What a stage of the round has given up; not for a fault of the kinds `but`."""
    rows = (row for row in set_aside(work, policy) if row.stage == stage)
    return {row.item_id for row in rows if row.kind not in but}


def selected_of(selections: pl.DataFrame, examples: set[str]) -> set[str]:
    """Which of some examples have a selected rollout."""
    return set(selections.filter(pl.col("selected"))["example_id"]) & examples


def left_out_by(
    work: Work, policy: Policy, examples: set[str], chosen: pl.DataFrame
) -> pl.DataFrame:
    """Rows in the columns of `chosen` for the round's rollouts of examples that are gone."""
    rows = work.run.rollouts().filter(of_round(policy)).filter(
        pl.col("example_id").is_in(list(examples))
    ).select("rollout_id", "policy_version", "example_id").collect()  # fmt: skip
    rows = rows.with_columns(
        curriculum=pl.lit(work.config.focus.curriculum),
        selected=pl.lit(False),
        reason=pl.lit(curriculum.GONE),
    )
    absent = [n for n in chosen.columns if n not in rows.columns]
    rows = rows.with_columns(pl.lit(None, chosen.schema[name]).alias(name) for name in absent)
    return rows.select(chosen.columns).cast(chosen.schema)


def check_complete(work: Work, policy: Policy) -> None:
    """Focus decides once: raise while rollouts of the round are still to come."""
    unusable = quarantined(work, policy, "rollout")
    expected = {
        make_rollout_id(policy.version, example.example_id, index)
        for example in trainable(work, policy)
        if example.example_id not in unusable
        for index in range(work.config.rollout.rollouts_per_example)
    }
    missing = expected - set(rollouts(work, policy).select("rollout_id").collect()["rollout_id"])
    if missing:
        raise VideoOPDError(
            f"{len(missing)} rollouts of round {policy.round} are still missing, {min(missing)} "
            "among them; run the rollout stage first"
        )


def why_none(work: Work, policy: Policy) -> str:
    """Why a round has no rollouts, and the fix."""
    config = config_words(work.run)
    draw_again = stage_command("draw", config, policy.round, force=True)
    if removed := gone(work, policy):
        return (
            f"{len(removed)} of its examples are no longer in {work.config.data.train.name}; draw "
            f"others with `{draw_again}`"
        )
    rows = [r for r in set_aside(work, policy) if r.stage in ("validate", "rollout")]
    if rows:
        return (
            f"{len(rows)} are in quarantine, the first because {rows[0].reason}; draw others with "
            f"`{draw_again}`, or correct that and start a new run"
        )
    if not curriculum.needs_predictions(work.config.focus):
        return "run the rollout stage first"
    return (
        "no example has answers of the teacher that reach focus.min_teacher_iou = "
        f"{work.config.focus.min_teacher_iou}; ask it with "
        f"`{stage_command('validate', config, policy.round)}`, draw others with `{draw_again}`, or "
        "lower the bound"
    )


def reasons(chosen: pl.DataFrame) -> str:
    counts = chosen.group_by("reason").len().sort("len", descending=True)
    return ", ".join(f"{n} {reason}" for reason, n in counts.iter_rows())
