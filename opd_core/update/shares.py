"""What of a step each rank computes: whole videos, so that a prefix is shared, balanced by tokens.

A sharded model is gathered layer by layer in each pass, by all ranks: they make equal numbers of
passes. Where a rank has fewer packs it runs a small tree of the step again, which counts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from opd_core.model.prefix_tree import PrefixTree, fill, grow, split
from opd_core.model.ranks import Ranks, dealt
from opd_core.types import GroundingExample, Rollout


@dataclass(frozen=True, slots=True)
class Share:
    """Some videos of a step."""

    examples: list[GroundingExample]
    counted: bool
    """False: there was none for this rank, and it runs another's along."""


def share(
    step: Sequence[GroundingExample], rollouts: Mapping[str, Sequence[Rollout]], ranks: Ranks
) -> Share:
    """That of this rank. Every rank deals alike, from what the rollouts say of their prompts."""
    videos = [list(group) for _, group in groupby(step, key=lambda e: e.video_path)]
    if ranks.size == 1:
        return Share(list(step), True)
    tokens = [_tokens(video, rollouts) for video in videos]
    own = dealt(tokens, ranks.size)[ranks.rank]
    if not own:
        smallest = min(range(len(videos)), key=lambda i: (tokens[i], i))
        return Share(videos[smallest][:1], False)
    return Share([example for i in own for example in videos[i]], True)


def _tokens(video: Sequence[GroundingExample], rollouts: Mapping[str, Sequence[Rollout]]) -> int:
    answers = [rollouts[example.example_id] for example in video]
    return grow(
        [of_example[0].prompt_token_ids for of_example in answers],
        [[(r.rollout_id, r.completion_token_ids) for r in rows] for rows in answers],
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
