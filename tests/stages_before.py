"""The stages that a test has run when it looks at the one that comes next."""

from __future__ import annotations

from storage.stages import STAGES


def stages_before(name: str) -> tuple[str, ...]:
    """The stages of a round that come before one of them, in order."""
    return STAGES[: STAGES.index(name)]
