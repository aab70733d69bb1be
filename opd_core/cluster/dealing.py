"""Which piece goes to which worker, and what becomes of a piece whose worker has died.

Longest first, one to each worker and then a second, which it prepares while it computes the first.
The last ones are not dealt as seconds while somebody has nothing.

When a worker dies, what it had in hand is suspect and is handed out once more as it is, alone: most
deaths are accidents, and the same piece gives the same rows. If that worker dies too, its videos
are handed out one by one. A video that was in the hands of three workers when they died is given
up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from opd_core.cluster.work import Piece
from opd_core.config.sections import VideoSection

IN_HAND = 2
"""Pieces that a worker may have."""
DEATHS = 3
"""Of workers, after which a video is given up."""
LETTERS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Dealt:
    """A piece, and how many workers have died with it in hand."""

    piece: Piece
    deaths: int = 0


class Dealing:
    """The pieces of a plan that nobody has computed."""

    def __init__(self, plan: Sequence[Piece], tokens: Callable[[Piece], float]) -> None:
        self._rest = deque(Dealt(piece) for piece in sorted(plan, key=tokens, reverse=True))
        self._suspects: deque[Dealt] = deque()

    def __len__(self) -> int:
        """Not in anybody's hands."""
        return len(self._rest) + len(self._suspects)

    def deal(
        self, hands: Sequence[Sequence[Dealt]], without: int = 0
    ) -> Iterator[tuple[int, Dealt]]:
        """(place of a worker among `hands`, a piece for it), as far as there are any. `hands`: what
        each has; `without`: how many workers more will come that have nothing."""
        counts = [len(hand) for hand in hands]
        alone = [any(dealt.deaths for dealt in hand) for hand in hands]
        for depth in range(IN_HAND):
            idle = without + sum(not count for count in counts)
            for place in range(len(hands)):
                if counts[place] != depth or alone[place]:
                    continue
                if not depth and self._suspects:
                    alone[place] = True
                    yield place, self._suspects.popleft()
                elif len(self._rest) > (idle if depth else 0):
                    yield place, self._rest.popleft()
                else:
                    continue
                counts[place] += 1

    def died(self, hand: Sequence[Dealt]) -> list[Piece]:
        """A worker has, with these in hand. What is given up of them; the rest is dealt again."""
        lost: list[Piece] = []
        for dealt in hand:
            deaths = dealt.deaths + 1
            videos = dealt.piece.by_video()
            if deaths >= DEATHS:
                lost += videos
            elif deaths == 1:
                self._suspects.append(Dealt(dealt.piece, deaths))
            else:
                self._suspects += [Dealt(video, deaths) for video in videos]
        return lost


def prompt_tokens(piece: Piece, video: VideoSection) -> float:
    """About how many tokens the prompts of a piece have, its videos counted once: enough to put
    pieces in order."""
    seconds = [
        next(sentences).duration
        for _, sentences in groupby(piece.examples, key=lambda e: e.video_path)
    ]
    shares = (min(1.0, s * video.fps / video.max_frames) for s in seconds)
    letters = sum(len(e.query) for e in piece.examples)
    return video.max_video_tokens * sum(shares) + letters / LETTERS_PER_TOKEN
