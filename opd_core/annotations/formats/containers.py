"""Rows out of files, whatever they mean: JSON lines, a JSON array, JSON objects, parquet.

A row comes with its place, `file:line`, or `file:row` (from 1) in an array or a parquet file; where
a row should be and cannot be read comes a `LeftOut`. The file's first bytes say which it is.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from opd_core.annotations.fields import BadAnnotationError, parse_json
from opd_core.annotations.formats.field_names import is_known
from opd_core.annotations.formats.found import LeftOut
from opd_core.annotations.formats.opening import opened, reading

Row = tuple[str, Any] | LeftOut

ROWS_PER_BATCH = 256
_ARRAY = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*(?:\{|\]|$)")
_GAP = re.compile(r"[\s,]*")


def rows_of(path: Path) -> Iterator[Row]:
    return reading(path, partial(_rows, path))


def _rows(path: Path, file: BinaryIO) -> Iterator[Row]:
    head = file.read(4)
    file.seek(0)
    if head == b"PAR1":
        yield from _parquet_rows(path)
        return
    first = next((line for line in file if line.strip()), b"")
    file.seek(0)
    if _ARRAY.match(first):
        yield from _array_rows(file, path.name)
    elif (objects := _spread_objects(first, file)) is not None:
        yield from ((f"{path.name}:{n}", value) for n, value in enumerate(objects, start=1))
    else:
        file.seek(0)
        yield from _line_rows(file, path.name)


def lines(path: Path) -> Iterator[tuple[str, bytes] | LeftOut]:
    """(`file:line`, its bytes) of every line that is not blank."""
    return reading(path, partial(_lines, path.name))


def _lines(name: str, file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield f"{name}:{number}", line


def _line_rows(file: BinaryIO, name: str) -> Iterator[Row]:
    for place, line in _lines(name, file):
        try:
            # a comma after an object: a line that was cut out of an array
            yield place, parse_json(line.strip().removesuffix(b","))
        except BadAnnotationError as error:
            yield LeftOut(place, None, str(error))


def _array_rows(file: BinaryIO, name: str) -> Iterator[Row]:
    """One by one, so that a broken row costs itself and those after it only."""
    try:
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        yield LeftOut(f"{name}:1", None, "the file is not UTF-8; save it as UTF-8")
        return
    decoder, at, number = json.JSONDecoder(), text.index("[") + 1, 1
    while True:
        place = f"{name}:{number}"
        at = _end_of_gap(text, at)
        if text.startswith("]", at):
            if text[at + 1 :].strip():
                yield LeftOut(place, None, "there is text after the end of the JSON array")
            return
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            reason = f"the array is not JSON from row {number} on: {error.msg}"
            yield LeftOut(place, None, reason)
            return
        except (ValueError, RecursionError):
            yield LeftOut(place, None, "the row is JSON beyond any annotation")
            return
        yield place, value
        number += 1


def _spread_objects(first: bytes, file: BinaryIO) -> list[Any] | None:
    """Read a file of JSON objects over several lines each; None where it is anything else."""
    if not first.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        return None
    try:
        parse_json(first.strip().removesuffix(b","))
    except BadAnnotationError:
        pass
    else:
        return None
    decoder, values, at = json.JSONDecoder(), [], 0
    try:
        text = file.read().decode("utf-8-sig")
        while (at := _end_of_gap(text, at)) < len(text):
            value, at = decoder.raw_decode(text, at)
            values.append(value)
    except (ValueError, RecursionError):
        return None
    return values


def _end_of_gap(text: str, at: int) -> int:
    gap = _GAP.match(text, at)
    return gap.end() if gap else at


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if is_known(name)]
            for batch in file.iter_batches(ROWS_PER_BATCH, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path.name}:{number}", {k: _given(v) for k, v in row.items()}
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
        first = (str(error).splitlines() or [""])[0]
        reason = f"the parquet file cannot be read from row {number + 1} on: {first}"
        yield LeftOut(f"{path.name}:{number + 1}", None, reason)


def _given(value: Any) -> Any:
    """pandas writes NaN for what is not there, and text as bytes where a column mixes types."""
    if isinstance(value, float) and math.isnan(value):
        return None
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value


def json_of_videos(path: Path) -> Iterator[tuple[str, str, Any]]:
    """(place, key, value) of a file that is one JSON object, a video a key.

    Raises `BadAnnotationError` for a file that is anything else.
    """
    with opened(path) as file:
        content = parse_json(file.read(), "the file")
    if not isinstance(content, dict):
        raise BadAnnotationError("the file is not one JSON object with a video a key")
    for key, value in content.items():
        yield f"{path.name}:{key}", key, value
