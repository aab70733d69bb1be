"""`videoopd report`: writes the report of one run or two into a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flows.console.out_file import check_out, write_out
from flows.console.report import size_text
from flows.report.page import html, report
from flows.report.side import sides

if TYPE_CHECKING:
    from storage.runs.run import Run


def write_report(runs: Sequence[Run], out: Path | None, force: bool) -> Path:
    """Write it, and say where it is; returns the file, by default `report-RUN.html` in the working
    folder. Raises `VideoOPDError` for a file that is there without `force`, and for a folder."""
    names = "-".join(side.name.replace("/", "-") for side in sides(runs))
    file = out or Path(f"report-{names}.html")
    check_out(file, force)
    content = html(report(runs)).encode()
    write_out(file, content)
    print(f"wrote {file} ({size_text(len(content))}); it needs no other file")
    return file
