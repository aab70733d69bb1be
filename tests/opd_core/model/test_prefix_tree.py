"""The tree as a data structure: masks, maps, packing and splitting, without any model."""

from collections.abc import Hashable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd_core.model.prefix_tree import Pack, PrefixTree, Segment, fill, grow, pack, split

tokens = st.lists(st.integers(0, 9), min_size=1, max_size=6)


@st.composite
def trees(draw: st.DrawFn, name: str = "") -> PrefixTree:
    """video -> sentences -> rollouts, with arbitrary tokens; rollouts have keys of their own."""
    video = draw(tokens)
    prompts = [video + draw(tokens) for _ in range(draw(st.integers(1, 3)))]
    completions = [
        [(f"{name}{p}-{i}", draw(tokens)) for i in range(draw(st.integers(0, 3)))]
        for p in range(len(prompts))
    ]
    return grow(prompts, completions, shared=len(video))


def sequences(tree: PrefixTree) -> dict[Hashable, tuple[list[int], list[int]]]:
    """key -> (prompt, completion) by walking up from every leaf."""
    found = {}
    for i, segment in enumerate(tree.segments):
        if segment.key is not None:
            above = [t for a in tree.path(i)[:-1] for t in tree.segments[a].token_ids]
            found[segment.key] = (above, list(segment.token_ids))
    return found


def ancestor_mask(packed: Pack) -> np.ndarray:
    """[N, N] bool: row i may see column j, from the parents of segments."""
    mask = np.zeros((packed.tokens, packed.tokens), dtype=bool)
    for t, tree in enumerate(packed.trees):
        for s in range(len(tree.segments)):
            rows = packed.rows(t, s)
            for ancestor in tree.path(s)[:-1]:
                above = packed.rows(t, ancestor)
                mask[rows.start : rows.stop, above.start : above.stop] = True
            mask[rows.start : rows.stop, rows.start : rows.stop] = np.tri(len(rows), dtype=bool)
    return mask


def test_the_example_of_the_module() -> None:
    tree = PrefixTree((Segment((1, 2), None), Segment((3, 4), 0, "cd"), Segment((5,), 0, "e")))
    packed = pack([tree])
    assert packed.token_ids_N.tolist() == [1, 2, 3, 4, 5]
    assert packed.predicting["cd"].tolist() == [1, 2]
    assert packed.predicting["e"].tolist() == [1]
    assert ancestor_mask(packed).astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


@settings(max_examples=100, deadline=None)
@given(st.lists(trees(), min_size=1, max_size=3))
def test_every_row_sees_exactly_its_own_sequence_so_far(several: list[PrefixTree]) -> None:
    several = [
        PrefixTree(
            tuple(
                Segment(s.token_ids, s.parent, None if s.key is None else f"{t}:{s.key}")
                for s in tree.segments
            )
        )
        for t, tree in enumerate(several)
    ]
    packed = pack(several)
    mask = ancestor_mask(packed)
    for tree in several:
        for key, (prompt, completion) in sequences(tree).items():
            whole = prompt + completion
            for position, row in enumerate(packed.predicting[key]):
                seen = packed.token_ids_N[np.flatnonzero(mask[row])]
                assert seen.tolist() == whole[: len(prompt) + position]
            own = packed.token_ids_N[packed.completions[key]]
            assert own.tolist() == completion
    rows = np.arange(packed.tokens)
    by_ends = (rows[None] <= rows[:, None]) & (rows[:, None] < packed.last_descendants()[None])
    assert (by_ends == mask).all()


@settings(max_examples=100, deadline=None)
@given(trees(), st.integers(1, 40))
def test_splitting_keeps_every_sequence_and_the_budget(tree: PrefixTree, budget: int) -> None:
    parts = split(tree, budget)
    merged: dict[Hashable, tuple[list[int], list[int]]] = {}
    for part in parts:
        found = sequences(part)
        assert not merged.keys() & found.keys()
        merged |= found
        assert part.tokens <= budget or len(found) <= 1
    assert merged == sequences(tree)


@settings(max_examples=50, deadline=None)
@given(st.lists(trees(), min_size=1, max_size=5), st.integers(1, 60))
def test_filling_keeps_order_and_budget(several: list[PrefixTree], budget: int) -> None:
    groups = list(fill(several, budget))
    assert [s for g in groups for t in g for s in sequences(t).values()] == [
        s for t in several for s in sequences(t).values()
    ]
    for group in groups:
        assert sum(t.tokens for t in group) <= budget or len(group) == 1


def test_a_tree_that_fits_is_not_touched() -> None:
    tree = grow([[1, 2, 3]], [[("a", [4])]])
    assert split(tree, tree.tokens) == [tree]


def test_one_prompt_is_the_root_and_several_share_their_longest_prefix() -> None:
    alone = grow([[1, 2, 3]], [[("a", [4])]])
    assert [s.token_ids for s in alone.segments] == [(1, 2, 3), (4,)]
    shared = grow([[1, 2, 3], [1, 2, 4, 5]], [[("a", [6])], [("b", [7])]])
    assert [s.token_ids for s in shared.segments] == [(1, 2), (3,), (6,), (4, 5), (7,)]
    same = grow([[1, 2], [1, 2]], [[("a", [6])], [("b", [7])]])
    assert [s.token_ids for s in same.segments] == [(1,), (2,), (6,), (2,), (7,)]


def test_what_makes_no_tree_is_refused() -> None:
    with pytest.raises(ValueError, match="no tokens"):
        grow([[1]], [[("a", [])]])
    with pytest.raises(ValueError, match="1 prompts for 2"):
        grow([[1]], [[], []])
    tree = grow([[1]], [[("a", [2])]])
    with pytest.raises(ValueError, match="'a' stands twice"):
        pack([tree, tree])
    with pytest.raises(ValueError, match="has no prompt"):
        pack([PrefixTree((Segment((1,), None, "a"),))])


def test_positions_continue_from_the_parent() -> None:
    tree = grow([[1, 2, 3], [1, 2, 4, 5]], [[("a", [6, 7])], [("b", [8])]])
    packed = pack([tree])

    def prompt_positions(_: PrefixTree, segment: int) -> np.ndarray:
        start, count = {0: (0, 2), 1: (10, 1), 3: (20, 2)}[segment]
        return np.arange(start, start + count + 1)[None].repeat(3, axis=0)

    assert packed.positions(prompt_positions)[0].tolist() == [0, 1, 10, 11, 12, 20, 21, 22]
