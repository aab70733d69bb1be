"""What of a step each rank computes: whole videos, so that a prefix is shared, balanced by tokens.

A sharded model is gathered layer by layer in each pass, by all ranks: they make equal numbers of
passes. Where a rank has fewer packs it runs a small tree of the step again, which counts nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from opd_core.model.prefix_tree import PrefixTree, fill, grow, split
from opd_core.model.ranks import Ranks, dealt
from opd_core.types import GroundingExample
from opd_core.update.rows import Trained, TrainedRows

Video = list[GroundingExample]
"""Sentences of one video that are in a step."""
Key = tuple[str, ...]
"""Their ids."""
EXAMPLES_AT_ONCE = 16
"""Of which the prompts are in memory while trees are measured: thousands of tokens each."""


@dataclass(frozen=True, slots=True)
class Share:
    """Some videos of a step."""

    examples: list[GroundingExample]
    counted: bool
    """False: there was none for this rank, and it runs another's along."""


def shares(
    steps: Sequence[Sequence[GroundingExample]], rows: TrainedRows, ranks: Ranks
) -> list[Share]:
    """Those of this rank, of each step. Every rank deals alike, from what the rollouts say of their
    prompts."""
    if ranks.size == 1:
        return [Share(list(step), True) for step in steps]
    videos = [_videos(step) for step in steps]
    tokens = _tokens({_key(video): video for step in videos for video in step}, rows, ranks)
    return [_share(step, tokens, ranks) for step in videos]


def _share(videos: Sequence[Video], tokens_of: Mapping[Key, int], ranks: Ranks) -> Share:
    tokens = [tokens_of[_key(video)] for video in videos]
    own = dealt(tokens, ranks.size)[ranks.rank]
    if not own:
        smallest = min(range(len(videos)), key=lambda i: (tokens[i], i))
        return Share(videos[smallest][:1], False)
    return Share([example for i in own for example in videos[i]], True)


def _videos(step: Sequence[GroundingExample]) -> list[Video]:
    return [list(group) for _, group in groupby(step, key=lambda e: e.video_path)]


def _key(video: Video) -> Key:
    return tuple(example.example_id for example in video)


def _tokens(videos: Mapping[Key, Video], rows: TrainedRows, ranks: Ranks) -> dict[Key, int]:
    """Of the tree of each video. A rank reads its part of them, and tells the others."""
    own = list(videos.values())[ranks.rank :: ranks.size]
    tokens = ranks.gathered(ranks.together(lambda: list(_measured(own, rows))))
    return {key: tokens[i % ranks.size][i // ranks.size] for i, key in enumerate(videos)}


def _measured(videos: Sequence[Video], rows: TrainedRows) -> Iterator[int]:
    together: list[Video] = []
    for number, video in enumerate(videos, start=1):
        together.append(video)
        if number == len(videos) or sum(map(len, together)) >= EXAMPLES_AT_ONCE:
            read = iter(rows.read([example for one in together for example in one], scores=False))
            for one in together:
                yield _tree_tokens([next(read) for _ in one])
            together = []


def _tree_tokens(video: Sequence[Trained]) -> int:
    return grow(
        [trained.rollouts[0].prompt_token_ids for trained in video],
        [[(r.rollout_id, r.completion_token_ids) for r in trained.rollouts] for trained in video],
    ).tokens


def even_packs(
    trees: Sequence[PrefixTree], counted: bool, max_tokens: int, ranks: Ranks
) -> list[tuple[list[PrefixTree], bool]]:
    """The packs of this rank, as many as any has, and whether each counts."""
    own = list(fill(trees, max_tokens)) if counted else []
    packs = [(pack, True) for pack in own]
    missing = max(ranks.gathered(len(own))) - len(own)
    if missing:
        smallest = split(min(trees, key=lambda tree: tree.tokens), 1)[0]
        packs += [([smallest], False)] * missing
    return packs
