"""What crosses a Prefect edge: a few numbers a stage and a round, never rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from opd_core.types import StageUse

Note = str | int | float


@dataclass(frozen=True, slots=True)
class Done:
    """What a stage has done."""

    rows: int = 0
    """Appended by this execution."""
    items: int = 0
    """Examples (or steps) it worked through."""
    notes: Mapping[str, Note | None] = field(default_factory=dict)
    """What is None is not noted."""
    copied: int = 0
    """Of the rows, those that another round or run had computed."""
    mismatch: float | None = None
    """Largest |engine - trainer| log-prob of what it computed and compared, nats."""


@dataclass(frozen=True, slots=True)
class StageSummary:
    stage: str
    policy_version: int
    rows: int
    """As in `Done`."""
    items: int
    seconds: float
    notes: dict[str, Note] = field(default_factory=dict)
    copied: int = 0
    """As in `Done`."""
    mismatch: float | None = None
    """As in `Done`."""
    use: StageUse | None = None
    """What this execution took."""

    def noting(self, **notes: Note | None) -> StageSummary:
        known = {key: value for key, value in notes.items() if value is not None}
        return replace(self, notes={**self.notes, **known})


@dataclass(frozen=True, slots=True)
class RoundSummary:
    """A policy, how it does on the eval split, and the round that made it (None for the base)."""

    policy_version: int
    eval_examples: int
    miou: float | None
    r1_30: float | None
    r1_50: float | None
    r1_70: float | None
    """R1@m under protocol `strict`: unrounded IoU > m."""
    no_span: float | None = None
    """Share of the eval answers that hold no span."""
    sampling_k1: float | None = None
    """k1 estimate of the reverse KL: mean of sampling - teacher log-probs over the round's scored
    tokens, nats."""
    rollouts: int | None = None
    rollouts_without_span: int | None = None
    left_out: int | None = None
    """What the round gave up: examples and rollouts, by any of its stages."""
    tokens: int | None = None
    """Completion tokens sampled."""
    engine_mismatch: float | None = None
    """Largest |engine - trainer| log-prob of what the rollout stage's gate scored again, nats."""
    teacher_passes_saved: int | None = None
    eval_asked: int | None = None
    """Examples of the eval split that it was asked; `eval_examples` of them have an answer."""
    annotations_left_out: int | None = None
    """Annotations of the files that make no example, or are in both splits."""
    stage_seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunSummary:
    run_path: str
    rounds: tuple[RoundSummary, ...]
