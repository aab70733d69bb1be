"""What a test takes for granted: a value that is there, of one kind, a column with a number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import polars as pl

Value = TypeVar("Value")


def known(value: Value | None) -> Value:
    """The value, which is not None."""
    assert value is not None
    return value


def only(kind: type[Value], values: Iterable[object]) -> list[Value]:
    """The values, each of which is of that kind."""
    of_kind = []
    for value in values:
        assert isinstance(value, kind), value
        of_kind.append(value)
    return of_kind


def largest(column: pl.Series) -> float:
    """The largest number of a column that has one; its nulls aside."""
    value = column.max()
    assert isinstance(value, int | float)
    return value
