from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pyarrow as pa
import pytest

from opd_core import types
from opd_core.types import Judgement, Span, UpdateStep
from storage.tables.columns import columns_of, span_columns, struct_of
from storage.tables.schemas import PROVENANCE, SCHEMA_VERSION, TABLES, TableSpec

# What each format looks like on disk. A change here is a new SCHEMA_VERSION: add a line.
FORMATS = {1: "90ec90f9c857ad72", 2: "0183bb736e91beea", 3: "3e80b88a3ae4911d"}


def kind(annotation: Any) -> str:
    """Arrow type that an annotation calls for, widths aside."""
    if get_origin(annotation) is Sequence:
        return f"list<{kind(get_args(annotation)[0])}>"
    if is_dataclass(annotation):
        return "struct"
    return {str: "string", int: "int", float: "float", bool: "bool"}[annotation]


def kind_of(column: pa.DataType) -> str:
    if pa.types.is_list(column):
        return f"list<{kind_of(column.value_type)}>"
    for test, name in (
        (pa.types.is_struct, "struct"), (pa.types.is_string, "string"),
        (pa.types.is_integer, "int"), (pa.types.is_floating, "float"),
        (pa.types.is_boolean, "bool"),
    ):  # fmt: skip
        if test(column):
            return name
    raise AssertionError(column)


def expected_columns(record: type) -> dict[str, tuple[str, bool]]:
    """name -> (kind, whether it may be null)."""
    columns = {}
    for name, annotation in get_type_hints(record).items():
        optional = NoneType in get_args(annotation)
        if optional:
            (annotation,) = (a for a in get_args(annotation) if a is not NoneType)
        if annotation is Span:
            columns.update(dict.fromkeys(span_columns(name), ("float", optional)))
        else:
            columns[name] = (kind(annotation), optional)
    return columns


@pytest.mark.parametrize("spec", TABLES.values(), ids=lambda spec: spec.name)
def test_columns_are_the_fields_of_the_record(spec: TableSpec) -> None:
    columns = {c.name: (kind_of(c.type), c.optional) for c in spec.own_columns}
    assert columns == expected_columns(spec.record)


@pytest.mark.parametrize("record", [UpdateStep, Judgement])
def test_a_struct_has_the_fields_of_its_record(record: type) -> None:
    assert {f.name: (kind_of(f.type), f.nullable) for f in struct_of(record)} == expected_columns(
        record
    )


@dataclass
class Undescribed:
    a: int


@dataclass
class Odd:
    a: Annotated[bytes, "What."]


@pytest.mark.parametrize(
    ("record", "problem"),
    [(Undescribed, "a has no description"), (Odd, "no column holds a .*bytes")],
)
def test_a_field_that_is_no_column_is_refused(record: Any, problem: str) -> None:
    with pytest.raises(TypeError, match=problem):
        columns_of(record)


def test_every_record_has_a_table() -> None:
    records = {
        r
        for r in vars(types).values()
        if hasattr(r, "__dataclass_fields__")
        and r not in (UpdateStep, types.StageUse, Judgement, types.Policy, types.Batch)
    }
    assert records == {spec.record for spec in TABLES.values()}


@pytest.mark.parametrize("spec", TABLES.values(), ids=lambda spec: spec.name)
def test_every_column_is_described_and_every_name_it_uses_exists(spec: TableSpec) -> None:
    names = [column.name for column in spec.columns]
    assert len(set(names)) == len(names)
    for field in spec.schema:
        assert field.metadata[b"description"].endswith((b".", b")", b"`")), field.name
    assert {*spec.key, *spec.finite, *(n for ns in spec.same_length for n in ns)} <= set(names)
    assert {c.name for c in PROVENANCE} <= set(names)
    assert len(fields(spec.record)) <= len(spec.own_columns)


def test_a_changed_format_has_a_new_version() -> None:
    text = "\n".join(
        f"{spec.name} {spec.key} {f.name} {f.type} {f.nullable}"
        for spec in TABLES.values()
        for f in spec.schema
    )
    assert FORMATS[SCHEMA_VERSION] == hashlib.sha256(text.encode()).hexdigest()[:16]
