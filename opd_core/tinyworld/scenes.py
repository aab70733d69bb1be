"""How much happens in a tiny video, and how long it is: what makes a world easy or hard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Scene:
    """One kind of video."""

    seconds: int
    """Length of every video."""
    asked: tuple[int, int]
    """Shapes that are asked for: the fewest and the most."""
    distractors: tuple[int, int]
    """Shapes that nobody asks for: the fewest and the most."""
    lengths: tuple[int, ...]
    """Whole seconds that an event may last."""
    length_shares: tuple[float, ...]
    """How often it does."""

    def draw_length(self, rng: np.random.Generator) -> int:
        """Whole seconds of an event."""
        return int(rng.choice(self.lengths, p=self.length_shares))


SCENES: dict[str, Scene] = {
    # A blind guess has an IoU of about 0.3 with an event: every group of rollouts has a reward.
    "short": Scene(
        seconds=12,
        asked=(2, 4),
        distractors=(0, 2),
        lengths=(2, 3, 4, 5, 6, 7, 8),
        length_shares=(0.2, 0.2, 0.2, 0.15, 0.1, 0.1, 0.05),
    ),
    # A blind guess has less than 0.1, a prompt about 500 tokens: rewards are sparse.
    "long": Scene(
        seconds=48,
        asked=(3, 6),
        distractors=(3, 8),
        lengths=(2, 3, 4, 5, 6),
        length_shares=(0.2, 0.2, 0.2, 0.2, 0.2),
    ),
}
"""By the name that `tinyworld make --scene` takes."""
SHORT = SCENES["short"]
