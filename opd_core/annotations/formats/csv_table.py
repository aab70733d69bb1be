"""CSV: a row a line, under a header with the names of `field_names.py`, or `video,start,end,query`.

Cells end at commas, semicolons, tabs or bars, whichever makes annotations of the first line. Where
it is not commas, numbers may have decimal commas, as Excel writes them in half of the world.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from opd_core.annotations.formats import field_names as names
from opd_core.annotations.formats.field_names import Fields, plain
from opd_core.annotations.formats.found import Format, Found, LeftOut
from opd_core.annotations.formats.opening import reading
from opd_core.annotations.formats.rows import found_in_row
from opd_core.annotations.times import is_time

COLUMNS = ("video", "start", "end", "query")
"""Of a file without a header."""
_DELIMITERS = ",;\t|"
_EXCELS_HINT = re.compile(r"sep=(.)\s*")
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*", re.ASCII)
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_TEXTS = frozenset(plain(name) for name in (*names.VIDEO, *names.SENTENCE, *names.QUESTION))


@dataclass(frozen=True, slots=True)
class _Form:
    delimiter: str
    columns: tuple[str, ...] | None
    """None: the first line is a header."""


def read_csv(path: Path) -> Iterator[Found]:
    return reading(path, partial(_table, path.name))


def _table(name: str, file: BinaryIO) -> Iterator[Found]:
    # what is no UTF-8 becomes surrogates, which cost their line
    text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
    before, first = _first_line(text)
    form = _form(first)
    text.seek(0)
    for _ in range(before):
        text.readline()
    yield from _read(text, name, before, form)


def _first_line(text: io.TextIOWrapper) -> tuple[int, str]:
    """(lines before it, the first line that is not blank, nor Excel's `sep=;`)."""
    before = 0
    while line := text.readline():
        if line.strip() and not _EXCELS_HINT.fullmatch(line):
            return before, line
        before += 1
    return before, ""


def _form(line: str) -> _Form:
    rows = {delimiter: _cells(line, delimiter) for delimiter in _DELIMITERS}
    for delimiter, cells in rows.items():
        if _is_header(cells):
            return _Form(delimiter, None)
    for delimiter, cells in rows.items():
        if len(cells) == len(COLUMNS) and all(is_time(_with_point(cell)) for cell in cells[1:3]):
            return _Form(delimiter, COLUMNS)
    delimiter = max(rows, key=lambda d: len(rows[d]))
    # a header that lacks a column still says what the others are
    known = sum(names.is_known(cell) for cell in rows[delimiter])
    return _Form(delimiter, None if known >= 2 else COLUMNS)


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:
        return []


def _is_header(cells: list[str]) -> bool:
    fields = Fields(dict.fromkeys((cell.strip() for cell in cells), True))
    return (
        fields.first(names.VIDEO) is not None
        and fields.first((*names.SENTENCE, *names.QUESTION)) is not None
        and (
            fields.first((*names.SPAN, *names.WINDOWS)) is not None
            or (fields.first(names.START) is not None and fields.first(names.END) is not None)
        )
    )


def _read(text: io.TextIOWrapper, name: str, before: int, form: _Form) -> Iterator[Found]:
    rows = csv.reader(text, delimiter=form.delimiter, skipinitialspace=True)
    columns = form.columns
    while True:
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            place = f"{name}:{before + rows.line_num}"
            yield LeftOut(place, None, f"the line is no CSV: {error}")
            continue
        place = f"{name}:{before + rows.line_num}"
        if not any(cell.strip() for cell in cells):
            continue
        if columns is None:
            columns = tuple(cell.strip() for cell in cells)
            continue
        if any(_NOT_UTF8.search(cell) for cell in cells):
            yield LeftOut(place, None, "the line holds what is no text; save the file as UTF-8")
            continue
        while len(cells) > len(columns) and not cells[-1].strip():
            cells.pop()
        if len(cells) != len(columns):
            reason = f"has {len(cells)} cells and not {len(columns)} ({', '.join(columns)})"
            yield LeftOut(place, None, f"the line {reason}")
            continue
        yield from found_in_row(place, _row(columns, cells, form.delimiter), "the line")


def _row(columns: tuple[str, ...], cells: list[str], delimiter: str) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for column, cell in zip(columns, cells, strict=True):
        is_number = delimiter != "," and plain(column) not in _TEXTS
        row[column] = (_with_point(cell) if is_number else cell).strip() or None
    return row


def _with_point(cell: str) -> str:
    return cell.replace(",", ".") if _DECIMAL_COMMA.fullmatch(cell) else cell


CSV = Format("a table with a header", read_csv)
