"""The answer of a query: as a table, as records where a table is too wide, or as a file.

A file's format is what its name ends in. A file that is there stays, unless it may be replaced.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from flows.console.out_file import check_out, write_out
from flows.console.report import printable
from opd_core.types import VideoOPDError

if TYPE_CHECKING:
    import polars as pl

SUFFIXES = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
ROWS_SHOWN = 50
CHARACTERS_SHOWN = 400
"""Of a value in a record; a file has all of it."""
WIDTH_OF_NO_TERMINAL = 160


@dataclass(frozen=True, slots=True)
class Destination:
    """Where an answer goes, and how it is written."""

    format: str
    out: Path | None
    """None: standard output."""


def destination(format: str | None, out: Path | None, force: bool) -> Destination:
    """Decide what --format, --out and --force ask for, before anything is computed.

    Raises `VideoOPDError` for an unknown suffix, for a file that is there, for a folder that is
    not, and for Parquet onto a terminal.
    """
    if out is None:
        if format == "parquet" and sys.stdout.isatty():
            raise VideoOPDError("Parquet is not for reading; name a file with --out FILE")
        return Destination(format or "table", None)
    known = SUFFIXES.get(out.suffix.lower())
    if format is None and known is None:
        ends = f"{out.suffix!r} at the end of {out}" if out.suffix else f"{out} has no ending and"
        raise VideoOPDError(
            f"{ends} names no format; end it with one of {', '.join(SUFFIXES)}, or give --format"
        )
    check_out(out, force, "leave out --out, and redirect")
    return Destination(format or str(known), out)


def write_answer(frame: pl.DataFrame, to: Destination) -> None:
    """Write the rows of a query; into a file whole or not at all, with a line that says so.

    `json` is an array of objects, `jsonl` an object a line; in `csv`, lists are written as JSON;
    what is shown on a terminal is shortened. Raises `VideoOPDError` for a file that cannot be
    written.
    """
    if to.out is None:
        _write(frame, to.format, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    content = BytesIO()
    _write(frame, to.format, content)
    write_out(to.out, content.getbuffer())
    rows = "1 row" if frame.height == 1 else f"{frame.height:,} rows"
    print(f"wrote {rows} to {to.out}")


def _write(frame: pl.DataFrame, format: str, file: IO[bytes]) -> None:
    match format:
        case "json":
            file.write(frame.write_json().encode() + b"\n")
        case "jsonl":
            file.write(frame.write_ndjson().encode())
        case "csv":
            file.write(_flat(frame).write_csv().encode())
        case "parquet":
            frame.write_parquet(file)
        case _:
            file.write(shown(frame, _width()).encode() + b"\n")


def _flat(frame: pl.DataFrame) -> pl.DataFrame:
    """Turn lists and structs into JSON text, which CSV can hold."""
    import polars as pl

    nested = [name for name, dtype in frame.schema.items() if dtype.is_nested()]
    return frame.with_columns(
        pl.col(name).map_elements(_as_json, return_dtype=pl.String) for name in nested
    )


def _as_json(value: Any) -> str:
    import polars as pl

    plain = value.to_list() if isinstance(value, pl.Series) else value
    return json.dumps(plain, ensure_ascii=False, default=str)


def _width() -> int:
    """Measure the terminal; COLUMNS says it for what is none."""
    return shutil.get_terminal_size((WIDTH_OF_NO_TERMINAL, 24)).columns


def shown(frame: pl.DataFrame, width: int) -> str:
    """Lay out a frame: as a table, or as records where the table is wider than `width`."""
    table = _table(frame)
    if frame.is_empty() or max(map(len, table.splitlines())) <= width:
        return printable(table)
    return printable(_records(frame, width))


def _table(frame: pl.DataFrame) -> str:
    import polars as pl

    with pl.Config(
        tbl_rows=ROWS_SHOWN,
        tbl_cols=-1,
        tbl_width_chars=65_535,  # judged by how wide it is, never folded
        fmt_str_lengths=80,
        tbl_hide_column_data_types=True,
        tbl_formatting="UTF8_FULL_CONDENSED" if sys.stdout.isatty() else "ASCII_MARKDOWN",
    ):
        return str(frame)


def _records(frame: pl.DataFrame, width: int) -> str:
    """Lay out `name | value` lines under a line a record."""
    names = max(map(len, frame.columns))
    lines = []
    for number, row in enumerate(frame.head(ROWS_SHOWN).iter_rows(named=True), start=1):
        head = f"-[ {number} ]"
        lines.append(head + "-" * (min(width, max(names + 20, 40)) - len(head)))
        for name, value in row.items():
            text = printable(_cell(value)).replace("\n", "\\n")
            room = max(20, width - names - 3)
            parts = [text[i : i + room] for i in range(0, len(text), room)] or [""]
            lines.append(f"{name:<{names}} | {parts[0]}".rstrip())
            lines += [f"{'':<{names}} | {part}" for part in parts[1:]]
    if frame.height > ROWS_SHOWN:
        lines.append(f"({frame.height - ROWS_SHOWN:,} more; --out FILE has all)")
    return "\n".join(lines)


def _rounded(value: Any) -> Any:
    """Round numbers as one reads them; a file has all digits."""
    match value:
        case float():
            return float(f"{value:.6g}")
        case list():
            return [_rounded(item) for item in value]
        case dict():
            return {name: _rounded(item) for name, item in value.items()}
        case _:
            return value


def _cell(value: Any) -> str:
    if value is None:
        return "null"
    rounded = _rounded(value)
    text = _as_json(rounded) if isinstance(value, list | dict) else str(rounded)
    if len(text) <= CHARACTERS_SHOWN:
        return text
    return f"{text[:CHARACTERS_SHOWN]}... ({len(text):,} characters)"
