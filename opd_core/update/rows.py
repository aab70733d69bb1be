"""What an update trains on: all rollouts of a round, of which those of a step are there at a time.

A rollout with its score is tens of kilobytes of Python, with hidden states megabytes, and a round
has as many as one likes. So an update holds the examples and the ids of their rollouts. What else
it needs it asks for: an outline of all of them, one after the other, before its first step, and
then the examples of each step, of which a rank reads its own share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from opd_core.types import GroundingExample, Rollout, TeacherScore


@dataclass(frozen=True, slots=True)
class Trained:
    """An example of the update: its selected rollouts and their scores, side by side.

    A score is None where no objective needs the teacher, and where none was asked for.
    """

    example: GroundingExample
    rollouts: tuple[Rollout, ...]
    scores: tuple[TeacherScore | None, ...]

    def __post_init__(self) -> None:
        for rollout, score in zip(self.rollouts, self.scores, strict=True):
            if score is not None and score.rollout_id != rollout.rollout_id:
                raise ValueError(f"score of {score.rollout_id} beside {rollout.rollout_id}")


@dataclass(frozen=True, slots=True)
class OutlineOfScore:
    teacher_hash: str
    content_hash: str
    teacher_logprobs: Sequence[float]

    @classmethod
    def of(cls, score: TeacherScore) -> OutlineOfScore:
        return cls(score.teacher_hash, score.content_hash, score.teacher_logprobs)


@dataclass(frozen=True, slots=True)
class Outline:
    """What is to be known of a rollout before the first step: may it be trained on, and which
    update is it. Neither its prompt nor the teacher's distribution, which are nearly all of it."""

    rollout_id: str
    example_id: str
    policy_version: int
    policy_hash: str
    answered_by: str
    engine: str
    completion_token_ids: Sequence[int]
    sampling_logprobs: Sequence[float] | None
    student_iou: float
    has_span: bool
    score: OutlineOfScore | None

    @classmethod
    def of(cls, rollout: Rollout, score: TeacherScore | None) -> Outline:
        return cls(
            rollout.rollout_id,
            rollout.example_id,
            rollout.policy_version,
            rollout.policy_hash,
            rollout.answered_by,
            rollout.engine,
            rollout.completion_token_ids,
            rollout.sampling_logprobs,
            rollout.student_iou,
            rollout.predicted_span is not None,
            None if score is None else OutlineOfScore.of(score),
        )


class TrainedRows(Protocol):
    """Can be pickled: each rank is given it, on whichever machine it is."""

    @property
    def examples(self) -> Sequence[GroundingExample]:
        """In the order of the draw, the sentences of one video next to each other."""
        ...

    def rollout_ids(self, example_id: str) -> Sequence[str]:
        """Of the rollouts to one of them, in the order in which `read` gives them."""
        ...

    def outlines(self) -> Iterator[Outline]:
        """Of all rollouts, in the order of the examples."""
        ...

    def read(self, examples: Sequence[GroundingExample], scores: bool = True) -> list[Trained]:
        """Some of the examples, in this order; `scores`: with what the objective needs of the
        teacher."""
        ...


@dataclass(frozen=True)
class HeldRows:
    """Of records that are in memory anyway."""

    work: Sequence[Trained]

    @property
    def examples(self) -> Sequence[GroundingExample]:
        return [trained.example for trained in self.work]

    def rollout_ids(self, example_id: str) -> Sequence[str]:
        return [rollout.rollout_id for rollout in self._by_id[example_id].rollouts]

    def outlines(self) -> Iterator[Outline]:
        for trained in self.work:
            yield from map(Outline.of, trained.rollouts, trained.scores)

    def read(self, examples: Sequence[GroundingExample], scores: bool = True) -> list[Trained]:
        return [self._by_id[example.example_id] for example in examples]

    @cached_property
    def _by_id(self) -> dict[str, Trained]:
        return {trained.example.example_id: trained for trained in self.work}
