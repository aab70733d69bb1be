"""What a run knows of one rollout and of its example, as frozen records, by point lookups.

Of every table only the rows of this rollout, or of its example (`answers.py`), are read: by the id
that the large tables have an index on (`storage/tables/upkeep.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import polars as pl

from flows.view.answers import (
    Answer,
    Prediction,
    Texts,
    after_all,
    answers,
    predictions,
    tone,
    words_of,
)
from opd_core.types import (
    Divergence,
    GroundingExample,
    Rollout,
    Selection,
    TeacherScore,
    TrainedRollout,
    Update,
)
from storage.tables.views import own_scores, teachers_of_round

if TYPE_CHECKING:
    from storage.runs.run import Run

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Token:
    """A token of an answer."""

    position: int
    id: int
    text: str
    sampling: float | None
    student: float | None
    """At the update, where one met it."""
    teacher: float | None
    advantage: float | None
    """teacher - sampling."""
    entropy: float | None
    """The teacher's, nats, where it was kept."""
    forward_kl: float | None
    reverse_kl: float | None
    js: float | None
    """Exact, where `videoopd rescore` made them."""
    top: tuple[tuple[str, float], ...]
    """The teacher's likeliest tokens that were kept, with their log-probs."""

    @property
    def tone(self) -> str:
        return tone(self.advantage)


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A rollout with all that its run knows of it."""

    rollout: Rollout
    example: GroundingExample | None
    """As the annotation files held it last; None where the run has none of that id."""
    score: TeacherScore | None
    """By its own teacher."""
    selection: Selection | None
    trained: TrainedRollout | None
    update: Update | None
    """Of its round, where that was committed."""
    tokens: tuple[Token, ...]
    answers: tuple[Answer, ...]
    """To the same example, this one too: by every policy, and to evaluations."""
    predictions: tuple[Prediction, ...]

    @property
    def group(self) -> tuple[Answer, ...]:
        """The rollouts of the example in the round, this one too."""
        version = self.rollout.policy_version
        return tuple(a for a in self.answers if a.rollout_id and a.policy_version == version)

    @property
    def is_trained(self) -> bool:
        """Whether a committed update trained on it."""
        return self.trained is not None and self.update is not None


def trajectory(run: Run, rollout_id: str, texts: Texts | None) -> Trajectory | None:
    """The rollout of that id; None where the run has none in force."""
    mine = pl.col("rollout_id") == rollout_id
    found = run.read("rollouts", Rollout, mine)
    if not found:
        return None
    rollout = found[0]
    update = _update(run, rollout.policy_version)
    scores = run.read("teacher_scores", TeacherScore, mine, ("hidden_states",))
    score = _own(run, rollout, scores, update)
    trained = _only(run.read("trained_rollouts", TrainedRollout, mine))
    divergence = None
    if score is not None:
        by = pl.col("teacher_hash") == score.teacher_hash
        divergence = _only(run.read("divergences", Divergence, mine & by))
    return Trajectory(
        rollout,
        _only(run.last_known_examples(pl.col("example_id") == rollout.example_id)),
        score,
        _only(run.read("selections", Selection, mine)),
        trained,
        update,
        tuple(_tokens(rollout, score, trained, divergence, texts)),
        answers(run, rollout.example_id, texts, {rollout.policy_version}),
        predictions(run, rollout.example_id),
    )


def beside(run: Run, rollout_id: str) -> tuple[str | None, str | None]:
    """The ids before and after one, in order of id, among the rollouts of its policy."""
    prefix = f"{rollout_id.partition('-')[0]}-"
    of_policy = (pl.col("rollout_id") >= prefix) & (pl.col("rollout_id") < after_all(prefix))
    ids = run.rollouts().filter(of_policy).select("rollout_id")
    here = pl.col("rollout_id")
    row = ids.select(
        before=here.filter(here < rollout_id).max(),
        after=here.filter(here > rollout_id).min(),
    ).collect()
    return row.item(0, "before"), row.item(0, "after")


def _update(run: Run, version: int) -> Update | None:
    return _only(run.read("updates", Update, pl.col("parent_version") == version))


def _only(rows: Sequence[Row]) -> Row | None:
    return rows[-1] if rows else None


def _own(
    run: Run, rollout: Rollout, scores: Sequence[TeacherScore], update: Update | None
) -> TeacherScore | None:
    """Of a rollout's scores that of its own teacher."""
    by = pl.DataFrame(
        [(s.rollout_id, s.teacher_hash) for s in scores],
        schema={"rollout_id": pl.String, "teacher_hash": pl.String}, orient="row",
    )  # fmt: skip
    of_round = (
        teachers_of_round(run.scan, run.teacher_hash, rollout.policy_version)
        if update is None
        else update.teacher_hash
    )
    own = own_scores(by, of_round).get_column("teacher_hash").to_list()
    return _only([score for score in scores if score.teacher_hash in own])


def _tokens(
    rollout: Rollout,
    score: TeacherScore | None,
    trained: TrainedRollout | None,
    divergence: Divergence | None,
    texts: Texts | None,
) -> Iterable[Token]:
    ids = rollout.completion_token_ids
    top_ids = score.topk_token_ids if score is not None else None
    top_logprobs = score.topk_logprobs if score is not None else None
    words = words_of([*ids, *(i for row in top_ids or () for i in row)], texts)
    for n, token_id in enumerate(ids):
        sampling, teacher = _at(rollout.sampling_logprobs, n), None
        top: tuple[tuple[str, float], ...] = ()
        if score is not None:
            teacher = score.teacher_logprobs[n]
        if top_ids is not None and top_logprobs is not None:
            pairs = zip(top_ids[n], top_logprobs[n], strict=True)
            top = tuple((words[i], logprob) for i, logprob in pairs)
        yield Token(
            position=n,
            id=token_id,
            text=words[token_id],
            sampling=sampling,
            student=_at(trained.student_logprobs if trained else None, n),
            teacher=teacher,
            advantage=None if teacher is None or sampling is None else teacher - sampling,
            entropy=_at(score.teacher_entropies if score else None, n),
            forward_kl=_at(divergence.forward_kl if divergence else None, n),
            reverse_kl=_at(divergence.reverse_kl if divergence else None, n),
            js=_at(divergence.js if divergence else None, n),
            top=top,
        )


def _at(values: Sequence[float] | None, place: int) -> float | None:
    return None if values is None else values[place]
