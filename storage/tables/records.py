"""Records to Arrow rows and back, and the checks that keep broken numbers out of the tables.

A row is refused, with its id, rather than repaired: a NaN or a missing log-prob that reaches a
table is found weeks later, in a loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.compute as pc

from opd_core.types import Span, VideoOPDError
from storage.tables.columns import columns_of, span_columns
from storage.tables.schemas import TableSpec

Record = TypeVar("Record")


def to_table(spec: TableSpec, records: Sequence[object]) -> pa.Table:
    """The records as rows of `spec`, without provenance; every value checked.

    Raises `VideoOPDError` naming the row for: a null where a value must be, NaN anywhere, infinity
    in the columns `spec.finite`, parallel lists of unequal length.
    """
    values: dict[str, list[object]] = {}
    for name, kind in _fields(spec.record):
        column = [getattr(record, name) for record in records]
        if kind is Span:
            start, end = span_columns(name)
            values[start] = [None if span is None else span[0] for span in column]
            values[end] = [None if span is None else span[1] for span in column]
        elif kind is not None:
            values[name] = [
                None if row is None else [_as_struct(one) for one in row] for row in column
            ]
        else:
            values[name] = column
    schema = pa.schema([column.field for column in spec.own_columns])
    arrays = [_array(spec, field, values[field.name]) for field in schema]
    table = pa.Table.from_arrays(arrays, schema=schema)
    _check(spec, table)
    return table


def from_rows(record: type[Record], table: pa.Table) -> list[Record]:
    """The rows as records, in order; lists become tuples, provenance columns are ignored."""
    columns: list[list[object]] = []
    for name, kind in _fields(record):
        if kind is Span:
            start, end = (table.column(column).to_pylist() for column in span_columns(name))
            columns.append(
                [None if s is None else Span(s, e) for s, e in zip(start, end, strict=True)]
            )
        elif name not in table.column_names:  # left on disk
            columns.append([None] * table.num_rows)
        elif kind is not None:
            rows = table.column(name).to_pylist()
            columns.append([None if r is None else tuple(kind(**one) for one in r) for r in rows])
        else:
            columns.append(_python_values(table.column(name)))
    return [record(*row) for row in zip(*columns, strict=True)]


def _fields(record: Any) -> Iterator[tuple[str, type | None]]:
    """(name, `Span` or the record that a list of structs holds; else None) of each field."""
    hints = get_type_hints(record)
    for field in fields(record):
        kinds = [hints[field.name], *get_args(hints[field.name])]
        lists = (kind for kind in kinds if get_origin(kind) is Sequence)
        inner: list[type] = [item for kind in lists for item in get_args(kind)]
        in_lists = next((kind for kind in inner if is_dataclass(kind)), None)
        yield field.name, Span if Span in kinds else in_lists


def _as_struct(record: Any) -> dict[str, object]:
    kind: type = type(record)
    return {column.name: getattr(record, column.name) for column in columns_of(kind)}


def _array(spec: TableSpec, field: pa.Field, values: list[object]) -> pa.Array:
    try:
        return pa.array(values, type=field.type)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        error.add_note(f"while writing column {field.name!r} of table {spec.name!r}")
        raise


def _python_values(column: pa.ChunkedArray) -> list[object]:
    """`to_pylist`, ten times faster for lists: through one flat buffer."""
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return list(column.to_pylist())
    lengths = pc.list_value_length(column).to_pylist()
    flat = _python_values(pc.list_flatten(column))
    values: list[object] = []
    position = 0
    for length in lengths:
        if length is None:
            values.append(None)
            continue
        values.append(tuple(flat[position : position + length]))
        position += length
    return values


def _check(spec: TableSpec, table: pa.Table) -> None:
    for column in spec.own_columns:
        values = table.column(column.name).combine_chunks()
        if not column.optional and values.null_count:
            row = pc.index(values.is_null(), True).as_py()
            raise _refused(spec, table, row, f"{column.name} is missing", "give it a value")
        for row, problem in _bad_numbers(values, column.name in spec.finite):
            raise _refused(
                spec, table, row, f"{column.name} holds {problem}", "find what computed it"
            )
    for name, other, value in spec.null_only_where:
        absent = pc.is_null(table.column(name))
        row = pc.index(pc.and_(absent, pc.not_equal(table.column(other), value)), True).as_py()
        if row >= 0:
            raise _refused(spec, table, row, f"{name} is missing", "give it a value")
    for names in spec.same_length:
        _check_lengths(spec, table, names)


def _bad_numbers(values: pa.Array, finite: bool) -> Iterator[tuple[int, str]]:
    """(row, what is wrong) of numbers that may not be stored; looks into lists and structs."""
    if pa.types.is_list(values.type):
        parents = pc.list_parent_indices(values)
        for position, problem in _bad_numbers(values.flatten(), finite):
            yield parents[position].as_py(), problem
        if values.flatten().null_count:
            position = pc.index(values.flatten().is_null(), True).as_py()
            yield parents[position].as_py(), "a null inside a list"
    elif pa.types.is_struct(values.type):
        for index in range(values.type.num_fields):
            yield from _bad_numbers(values.field(index), finite)
    elif pa.types.is_floating(values.type):
        test: Callable[[pa.Array], pa.Array] = pc.is_finite if finite else _is_number
        position = pc.index(test(values), False).as_py()
        if position >= 0:
            number = values[position].as_py()
            yield position, "NaN" if math.isnan(number) else "an infinite number"


def _is_number(values: pa.Array) -> pa.Array:
    return pc.invert(pc.is_nan(values))


def _check_lengths(spec: TableSpec, table: pa.Table, names: Sequence[str]) -> None:
    """Lists of one row have one length at each level; an absent (null) list is left out."""
    first, *others = names
    expected = pc.list_value_length(table.column(first))
    for name in others:
        row = pc.index(pc.equal(pc.list_value_length(table.column(name)), expected), False).as_py()
        if row >= 0:
            count = len(table.column(name)[row])
            problem = f"{name} has {count} entries and {first} has {expected[row].as_py()}"
            raise _refused(spec, table, row, problem, "give both one entry a position")
    nested = [n for n in names if pa.types.is_list(table.column(n).type.value_type)]
    for name in nested[1:]:
        first_lists, lists = table.column(nested[0]), table.column(name)
        if _lengths(first_lists) != _lengths(lists):
            rows = zip(first_lists.to_pylist(), lists.to_pylist(), strict=True)
            row = next(i for i, (a, b) in enumerate(rows) if _shape(a) != _shape(b))
            problem = f"{name} and {nested[0]} differ in shape"
            raise _refused(spec, table, row, problem, "give both the same shape")


def _lengths(nested: pa.ChunkedArray) -> list[pa.ChunkedArray]:
    """Lengths of the outer and of the inner lists."""
    return [pc.list_value_length(nested), pc.list_value_length(pc.list_flatten(nested))]


def _shape(nested: list[list[object]] | None) -> list[int] | None:
    return None if nested is None else [len(inner) for inner in nested]


def _refused(spec: TableSpec, table: pa.Table, row: int, problem: str, fix: str) -> VideoOPDError:
    identity = ", ".join(f"{name} {table.column(name)[row].as_py()}" for name in spec.key)
    return VideoOPDError(f"{spec.name}: {identity} is refused because {problem}; {fix}")
