"""Rows found by sorted keys are those that a join finds."""

from __future__ import annotations

import polars as pl
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from storage.asking.sorted_keys import SortedKeys, found

KEYS = st.integers(0, 12) | st.sampled_from([2**63, 2**64 - 1])


@given(st.lists(st.none() | KEYS), st.lists(KEYS, unique=True))
def test_what_is_found_is_what_a_join_finds(left: list[int | None], right: list[int]) -> None:
    ours = pl.DataFrame({"key": left}, schema={"key": pl.UInt64})
    theirs = pl.DataFrame(
        {"key": right, "x": [None if k == 3 else -(k % 7) for k in right]},
        schema={"key": pl.UInt64, "x": pl.Int64},
    )
    joined = ours.join(theirs, on="key", how="left", maintain_order="left").drop("key")
    assert_frame_equal(found(SortedKeys(ours["key"]), theirs, "key"), joined)


@given(st.lists(KEYS))
def test_equal_keys_are_seen(keys: list[int]) -> None:
    series = pl.Series(keys, dtype=pl.UInt64)
    assert SortedKeys(series).are_different == (len(set(keys)) == len(keys))
