"""Formats of plain text: Charades-STA's lines, and CSV with the columns video, start, end, query.

Charades-STA  AO8RW 0.0 6.9##a person is putting a book on a shelf.
CSV           video,start,end,query     (a header in any order, `source` and `duration` may be
                                         there too; or no header and this order)
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from opd_core.annotation_fields import BadAnnotationError
from opd_core.formats.found import Annotated, Found, LeftOut, annotated, attempt, lines, opened

COLUMNS = ("video", "start", "end", "query")
OPTIONAL_COLUMNS = ("source", "duration")


def read_charades_sta(path: Path) -> Iterator[Found]:
    for place, line in lines(path):
        yield attempt(place, None, partial(_charades, place, line))


def _charades(place: str, line: bytes) -> Annotated:
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadAnnotationError("the line is not UTF-8") from None
    head, separator, query = text.partition("##")
    words = head.split()
    if not separator or len(words) != 3:
        raise BadAnnotationError("the line is not of the form `VIDEO start end##sentence`")
    video, start, end = words
    return annotated(place, video, query, [_number(start, "start"), _number(end, "end")])


def read_csv(path: Path) -> Iterator[Found]:
    with opened(path) as file:
        # what is no UTF-8 becomes surrogates, which the check of each text refuses
        text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
        rows = csv.reader(text)
        columns: list[str] | None = None
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield LeftOut(f"{path.name}:{rows.line_num}", None, f"the line is no CSV: {error}")
                continue
            place = f"{path.name}:{rows.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if columns is None:
                names = [cell.strip().lower() for cell in row]
                if set(COLUMNS) <= set(names):
                    columns = names
                    continue
                columns = list(COLUMNS)
            yield attempt(place, None, partial(_row, place, columns, row))


def _row(place: str, columns: list[str], row: list[str]) -> Annotated:
    if len(row) != len(columns):
        raise BadAnnotationError(
            f"the line has {len(row)} cells and not {len(columns)} ({', '.join(columns)})"
        )
    cells = dict(zip(columns, row, strict=True))
    source, duration = (cells.get(name, "").strip() for name in OPTIONAL_COLUMNS)
    return annotated(
        place,
        cells["video"],
        cells["query"],
        [_number(cells["start"], "start"), _number(cells["end"], "end")],
        source or None,
        _number(duration, "duration") if duration else None,
    )


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadAnnotationError(f"{what!r} is not a number") from None
