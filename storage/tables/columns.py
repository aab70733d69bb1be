"""Columns of a record: each field of `opd_core/types.py` as one, by its type and its description.

str, bool, int, float            string, bool, int64, float64
Sequence[int], Sequence[float]   lists in 32 bits: a softmax is computed in float32;
                                 `FLOAT64` beside the description keeps 64
Span                             two columns, `<name>_start` and `<name>_end`: SQL asks for them
a record in a sequence           a list of structs
... | None                       the column may be null, which means absent
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Annotated, get_args, get_origin, get_type_hints

import pyarrow as pa

from opd_core.types import FLOAT64, Span

_PLAIN: dict[object, pa.DataType] = {
    str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()
}  # fmt: skip
_IN_LISTS: dict[object, pa.DataType] = _PLAIN | {int: pa.int32(), float: pa.float32()}


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: pa.DataType
    description: str
    optional: bool = False
    """Null means absent. Every other column refuses nulls."""

    @property
    def field(self) -> pa.Field:
        metadata = {"description": self.description}
        return pa.field(self.name, self.type, nullable=self.optional, metadata=metadata)


@cache
def columns_of(record: type) -> tuple[Column, ...]:
    """The columns of a record, in the order of its fields.

    Raises `TypeError` for a field without a description, or of a type that no column has.
    """
    hints = get_type_hints(record, include_extras=True)
    return tuple(c for field in fields(record) for c in _columns(field.name, hints[field.name]))


def struct_of(record: type) -> pa.DataType:
    """A record as one value, inside a list."""
    return pa.struct([column.field for column in columns_of(record)])


def span_columns(field_name: str) -> tuple[str, str]:
    """The two columns of a span: `span` -> span_start, span_end; `predicted_span` -> predicted_*.

    >>> span_columns("predicted_span")
    ('predicted_start', 'predicted_end')
    """
    prefix = field_name.removesuffix("_span")
    return f"{prefix}_start", f"{prefix}_end"


def _columns(name: str, hint: object) -> Iterator[Column]:
    if get_origin(hint) is not Annotated:
        raise TypeError(f"{name} has no description; write Annotated[TYPE, 'what it holds.']")
    annotation, description, *marks = get_args(hint)
    options = [option for option in get_args(annotation) if option is not NoneType]
    optional = NoneType in get_args(annotation)
    kind = options[0] if optional else annotation
    if kind is Span:
        for column, end in zip(span_columns(name), ("Start", "End"), strict=True):
            yield Column(column, pa.float64(), f"{end} of {description}", optional)
    else:
        yield Column(name, _type(kind, FLOAT64 in marks), description, optional)


def _type(kind: object, wide: bool, inside: bool = False) -> pa.DataType:
    if get_origin(kind) is Sequence:
        return pa.list_(_type(get_args(kind)[0], wide, inside=True))
    if is_dataclass(kind):
        assert isinstance(kind, type)
        return struct_of(kind)
    types = _IN_LISTS if inside and not wide else _PLAIN
    if kind not in types:
        raise TypeError(f"no column holds a {kind}; see storage/tables/columns.py for what one may")
    return types[kind]
