"""Who gets which piece, and what becomes of one whose workers die."""

from __future__ import annotations

from opd_core.cluster.dealing import Dealing, Dealt, prompt_tokens
from opd_core.cluster.work import Piece, cut
from opd_core.config.sections import VideoSection
from tests.opd_core.cluster.fragile_work import example

LENGTHS = (30.0, 10.0, 50.0, 20.0, 40.0)


def pieces(lengths: tuple[float, ...] = LENGTHS) -> list[Piece]:
    """One a video, of so many seconds."""
    return cut([example(n, seconds=s) for n, s in enumerate(lengths)], 1, lambda _: True)


def dealing(plan: list[Piece]) -> Dealing:
    return Dealing(plan, lambda piece: piece.examples[0].duration)


def lengths(dealt: list[tuple[int, Dealt]]) -> list[tuple[int, float]]:
    return [(place, one.piece.examples[0].duration) for place, one in dealt]


def test_longest_first_and_one_each_before_a_second() -> None:
    cards = dealing(pieces())
    first = list(cards.deal([[], []]))
    assert lengths(first) == [(0, 50.0), (1, 40.0), (0, 30.0), (1, 20.0)]
    hands = [[d for place, d in first if place == n] for n in (0, 1)]
    assert list(cards.deal(hands)) == [] and len(cards) == 1, "two each"
    assert lengths(list(cards.deal([hands[0], []]))) == [(1, 10.0)]


def test_the_last_ones_wait_for_who_has_nothing() -> None:
    """Also for a worker that is still opening."""
    cards = dealing(pieces((10.0, 20.0)))
    assert lengths(list(cards.deal([[]], without=1))) == [(0, 20.0)]
    assert lengths(list(cards.deal([[Dealt(pieces()[0])], []]))) == [(1, 10.0)]


def test_what_an_accident_took_is_handed_out_as_it_was_and_alone() -> None:
    cards = dealing(pieces())
    hand = [d for _, d in cards.deal([[]])]
    assert cards.died(hand) == []
    again = list(cards.deal([[], []]))
    assert [d.piece for _, d in again] == [d.piece for d in hand]
    assert [place for place, _ in again] == [0, 1], "each alone, though there is more"
    places = [place for place, _ in cards.deal([[again[0][1]], []])]
    assert places and set(places) == {1}, "and nothing beside it"


def test_a_piece_that_kills_twice_is_taken_apart_and_its_killer_given_up() -> None:
    """Its other video goes on, however often the killer was in its company."""
    (piece,) = cut([example(0), example(1), example(1, 1)], 4, lambda _: True)
    cards = dealing([piece])
    ((_, whole),) = cards.deal([[]])
    assert cards.died([whole]) == []
    ((_, once),) = cards.deal([[]])
    assert once.piece == piece and cards.died([once]) == []
    ((_, one), (_, other)) = cards.deal([[], []])
    assert [e.example_id for e in one.piece.examples] == ["0-0"]
    assert [e.example_id for e in other.piece.examples] == ["1-0", "1-1"]
    assert one.piece.is_first and not other.piece.is_first
    assert cards.died([other]) == [other.piece]
    assert not len(cards)


def test_a_piece_of_what_is_left_knows_what_is_needed() -> None:
    examples = [example(0), example(0, 1), example(1), example(2)]
    plan = cut(examples, 2, lambda e: e.example_id in ("0-1", "2-0"))
    assert [p.needed for p in plan] == [{"0-1"}, {"2-0"}]
    assert [p.is_first for p in plan] == [True, False]
    assert [len(p.examples) for p in plan] == [2, 2], "cut as if all were needed"
    assert [v.needed for v in plan[1].by_video()] == [{"2-0"}]


def test_long_videos_have_more_tokens_up_to_the_budget() -> None:
    video = VideoSection(fps=2.0, max_frames=100, max_video_tokens=1000)
    tokens = [prompt_tokens(p, video) for p in pieces((10.0, 40.0, 50.0, 900.0))]
    assert tokens[0] < tokens[1] < tokens[2] == tokens[3]
    (both,) = cut([example(0), example(0, 1)], 2, lambda _: True)
    assert prompt_tokens(both, video) < 1.1 * tokens[0], "a video counts once"
