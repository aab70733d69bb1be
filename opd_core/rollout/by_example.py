"""Rollouts, as most of what works with them takes them: those of an example together, in order."""

from __future__ import annotations

from collections.abc import Iterable

from opd_core.types import Rollout


def by_example(rollouts: Iterable[Rollout]) -> dict[str, list[Rollout]]:
    """example_id -> its rollouts by their sample_index."""
    groups: dict[str, list[Rollout]] = {}
    for rollout in sorted(rollouts, key=lambda r: r.sample_index):
        groups.setdefault(rollout.example_id, []).append(rollout)
    return groups
