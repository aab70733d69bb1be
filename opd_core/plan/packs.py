"""What goes through one forward pass: how many tokens, of which kinds, in how many trees."""

from __future__ import annotations

from dataclasses import dataclass

DENSE_TREE_TOKENS = 320
BLOCK_TOKENS = 256
"""As `opd_core/model/tree_attention.py` cuts trees on a CPU (a test compares)."""


@dataclass(frozen=True, slots=True)
class Tree:
    """Sentences and rollouts on one video; means, so any of them may be a fraction."""

    vision: float
    """Vision tokens of the video."""
    shared: float
    """Tokens of the root: the vision tokens, and the text that all sentences share."""
    own: float
    """Tokens of a sentence's own part of the prompt."""
    sentences: float
    rollouts: float
    """Of a sentence; 0 where it is to be answered."""
    answer: float
    """Tokens of an answer."""

    @property
    def answers(self) -> float:
        """Tokens of all answers."""
        return self.sentences * self.rollouts * self.answer

    @property
    def tokens(self) -> float:
        return self.shared + self.sentences * self.own + self.answers

    @property
    def separately(self) -> float:
        """Tokens of the same as separate sequences."""
        return self.sentences * max(self.rollouts, 1) * (self.shared + self.own + self.answer)

    @property
    def scores(self) -> float:
        """Pairs of a token and one that it sees: of the root, and of its own branch."""
        own = self.own**2 / 2 + self.rollouts * self.answer * (self.own + self.answer / 2)
        branches = self.own + self.rollouts * self.answer
        return self.shared**2 / 2 + self.sentences * (branches * self.shared + own)


@dataclass(frozen=True, slots=True)
class Pack:
    """Trees alike, laid out one after the other; the last one may be there in part."""

    tree: Tree
    trees: float

    @property
    def tokens(self) -> float:
        return self.trees * self.tree.tokens

    @property
    def vision(self) -> float:
        return self.trees * self.tree.vision

    @property
    def answers(self) -> float:
        return self.trees * self.tree.answers


def packed(tree: Tree, trees: float, most: int) -> Pack:
    """As much of `trees` of these as fits into a pack of `most` tokens. A tree that is larger is
    split, its prompt repeated; one answer with its prompt is in any case."""
    whole = trees * tree.tokens
    if whole <= most:
        return Pack(tree, trees)
    if tree.tokens <= most:
        return Pack(tree, most // tree.tokens)
    least = tree.shared + tree.own + tree.answer
    if tree.answers == 0 or least >= most:
        one = Tree(tree.vision, tree.shared, tree.own, 1, min(tree.rollouts, 1), tree.answer)
        return Pack(one, 1)
    room = most - tree.shared
    each = tree.own + tree.rollouts * tree.answer
    if each <= room:
        sentences, rollouts = room // each, tree.rollouts
    else:
        sentences, rollouts = 1.0, (room - tree.own) // tree.answer
    return Pack(Tree(tree.vision, tree.shared, tree.own, sentences, rollouts, tree.answer), 1)


@dataclass(frozen=True, slots=True)
class Blocks:
    """What `PackedAttention` makes of a tree on a CPU, in numbers a layer."""

    masks: float
    """Of masks, as floating-point numbers."""
    contexts: float
    """Tokens whose keys and values are copied, for branches that see the root."""


def blocks_of(tree: Tree) -> Blocks:
    if tree.tokens <= tree.shared:
        return Blocks(0, 0)
    if tree.tokens <= DENSE_TREE_TOKENS:
        return Blocks(tree.tokens**2, 0)
    branches = tree.tokens - tree.shared
    one = branches / tree.sentences if tree.sentences > 1 else branches / max(tree.rollouts, 1)
    block = one * max(1, BLOCK_TOKENS // one)
    count = max(1, -(-branches // block))
    return Blocks(branches * (tree.shared + branches / count), count * tree.shared + branches)
