"""Prefix trees: several rollouts (and queries) that share one video's prompt, as one sequence.

    [video][query 1][y11][y12]...[query 2][y21]...

A token sees its ancestors and nothing else; its position continues from its parent. So one forward
pass over the packed sequence equals one pass a rollout, without repeating the video.

This module is the data structure only: no model, no attention. Example, three segments:

    root  "A B"        rows 0 1
    leaf  "C D"        rows 2 3      parent root
    leaf  "E"          rows 4        parent root

    predicting_rows of "C D" = [1, 2]: row 1 (B) predicts C, row 2 (C) predicts D.
    predicting_rows of "E"   = [1].

Shape suffixes: N packed tokens, T tokens of one completion.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens with one parent."""

    token_ids: tuple[int, ...]
    parent: int | None
    """Index of the parent in `PrefixTree.segments`, which stands before its children; or None."""
    key: Hashable = None
    """Whose completion it is. None for prompt segments, which nobody trains on."""


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """Segments in depth-first order, the root first. The root holds all the vision tokens."""

    segments: tuple[Segment, ...]
    vision: Any = None
    """What the model needs for the root's vision tokens (`prompts.VisionInput`); opaque here."""

    @property
    def tokens(self) -> int:
        return sum(len(s.token_ids) for s in self.segments)

    def path(self, index: int) -> tuple[int, ...]:
        """Indices of the segments from the root to `index`, both included."""
        path: list[int] = []
        at: int | None = index
        while at is not None:
            path.append(at)
            at = self.segments[at].parent
        return tuple(reversed(path))


def grow(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[tuple[Hashable, Sequence[int]]]],
    vision: Any = None,
    shared: int | None = None,
) -> PrefixTree:
    """The tree of one video: prompts that begin alike, each with its (key, token ids) completions.

    `shared` is the length of the common prefix that becomes the root; by default the longest one
    that leaves every other prompt at least one token of its own.
    """
    if not prompts or len(prompts) != len(completions):
        raise ValueError(f"{len(prompts)} prompts for {len(completions)} lists of completions")
    if len(prompts) == 1:
        root: tuple[int, ...] = tuple(prompts[0])
    else:
        length = common_prefix(prompts) if shared is None else shared
        root = tuple(prompts[0][: min(length, min(map(len, prompts)) - 1)])
    segments = [Segment(root, None)]
    for prompt, answers in zip(prompts, completions, strict=True):
        parent = 0
        if len(prompts) > 1:
            parent = len(segments)
            segments.append(Segment(tuple(prompt[len(root) :]), 0))
        for key, token_ids in answers:
            if not token_ids:
                raise ValueError(f"the completion of {key!r} has no tokens")
            segments.append(Segment(tuple(token_ids), parent, key))
    return PrefixTree(tuple(segments), vision)


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the longest common prefix."""
    shortest = min(sequences, key=len)
    for i, token in enumerate(shortest):
        if any(s[i] != token for s in sequences):
            return i
    return len(shortest)


@dataclass(frozen=True, slots=True)
class Pack:
    """Trees laid out one after the other in a single sequence of N tokens."""

    trees: tuple[PrefixTree, ...]
    token_ids_N: np.ndarray
    starts: tuple[tuple[int, ...], ...]
    """First row of each segment of each tree."""
    completions: dict[Hashable, np.ndarray] = field(default_factory=dict)
    """key -> [T] rows of the completion's own tokens."""
    predicting: dict[Hashable, np.ndarray] = field(default_factory=dict)
    """key -> [T] rows whose output predicts those tokens."""

    @property
    def tokens(self) -> int:
        return len(self.token_ids_N)

    def rows(self, tree: int, segment: int) -> range:
        start = self.starts[tree][segment]
        return range(start, start + len(self.trees[tree].segments[segment].token_ids))

    def positions(self, prompt_positions: Callable[[PrefixTree, int], np.ndarray]) -> np.ndarray:
        """mRoPE position ids, [3, N].

        `prompt_positions(tree, segment)` gives [3, n + 1] for a prompt segment of n tokens: its
        own positions, and the one at which its children's text continues. Completions count on
        from their parent.
        """
        positions_3N = np.zeros((3, self.tokens), dtype=np.int64)
        for t, tree in enumerate(self.trees):
            follows: dict[int, np.ndarray] = {}
            for s, segment in enumerate(tree.segments):
                rows = self.rows(t, s)
                n = len(rows)
                if segment.key is None:
                    here = prompt_positions(tree, s)
                elif segment.parent is None:
                    raise ValueError(f"the completion {segment.key!r} has no prompt")
                else:
                    here = follows[segment.parent] + np.arange(n + 1)[None]
                positions_3N[:, rows.start : rows.stop] = here[:, :n]
                follows[s] = here[:, n:]
        return positions_3N

    def last_descendants(self) -> np.ndarray:
        """[N] for each row, one past the last row that may see it.

        In depth-first order that says all: row i sees row j where j <= i < last_descendants[j].
        """
        ends_N = np.zeros(self.tokens, dtype=np.int64)
        for t, tree in enumerate(self.trees):
            ends = [self.rows(t, s).stop for s in range(len(tree.segments))]
            for s in reversed(range(len(tree.segments))):
                parent = tree.segments[s].parent
                if parent is not None:
                    ends[parent] = max(ends[parent], ends[s])
                rows = self.rows(t, s)
                ends_N[rows.start : rows.stop] = ends[s]
        return ends_N


def pack(trees: Sequence[PrefixTree]) -> Pack:
    """Lay out trees one after the other. Raises on a completion key that stands twice."""
    token_ids: list[int] = []
    starts: list[tuple[int, ...]] = []
    result = Pack(tuple(trees), np.zeros(0, dtype=np.int64), ())
    for tree in trees:
        tree_starts: list[int] = []
        for segment in tree.segments:
            start = len(token_ids)
            tree_starts.append(start)
            token_ids.extend(segment.token_ids)
            if segment.key is None:
                continue
            if segment.parent is None:
                raise ValueError(f"the completion {segment.key!r} has no prompt")
            if segment.key in result.completions:
                raise ValueError(f"the completion {segment.key!r} stands twice in one pack")
            rows = np.arange(start, len(token_ids))
            before = tree_starts[segment.parent] + len(tree.segments[segment.parent].token_ids) - 1
            result.completions[segment.key] = rows
            result.predicting[segment.key] = np.concatenate(([before], rows[:-1]))
        starts.append(tuple(tree_starts))
    return Pack(
        result.trees,
        np.asarray(token_ids, dtype=np.int64),
        tuple(starts),
        result.completions,
        result.predicting,
    )


def fill(trees: Sequence[PrefixTree], max_tokens: int) -> Iterator[list[PrefixTree]]:
    """Group trees, in order, into packs of at most `max_tokens`.

    A tree that is larger alone is split at a completion boundary, its prompt repeated; a single
    completion with its prompt that is larger still makes a pack of its own.
    """
    group: list[PrefixTree] = []
    used = 0
    for tree in trees:
        for part in split(tree, max_tokens):
            if group and used + part.tokens > max_tokens:
                yield group
                group, used = [], 0
            group.append(part)
            used += part.tokens
    if group:
        yield group


def split(tree: PrefixTree, max_tokens: int) -> list[PrefixTree]:
    """Trees of at most `max_tokens` with the same completions; `[tree]` where it already fits."""
    leaves = [i for i, s in enumerate(tree.segments) if s.key is not None]
    if tree.tokens <= max_tokens or len(leaves) <= 1:
        return [tree]
    parts: list[PrefixTree] = []
    part: set[int] = set()
    for leaf in leaves:
        wider = part | set(tree.path(leaf))
        if part and sum(len(tree.segments[i].token_ids) for i in wider) > max_tokens:
            parts.append(_subtree(tree, part))
            wider = set(tree.path(leaf))
        part = wider
    parts.append(_subtree(tree, part))
    return parts


def _subtree(tree: PrefixTree, members: set[int]) -> PrefixTree:
    order = sorted(members)
    new = {old: i for i, old in enumerate(order)}
    segments = []
    for old in order:
        s = tree.segments[old]
        segments.append(Segment(s.token_ids, None if s.parent is None else new[s.parent], s.key))
    return PrefixTree(tuple(segments), tree.vision)
