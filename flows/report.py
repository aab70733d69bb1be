"""What the commands print: the table of rounds, and the answer of a query in four formats."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from opd_core.metrics import grounding_metrics
from opd_core.types import VideoOPDError
from storage.run import Run

if TYPE_CHECKING:
    import polars as pl

    from flows.summaries import RoundSummary

STAGES = ("draw", "validate", "rollout", "score", "focus", "update", "evaluate")
ABSENT = "-"


def console() -> Console:
    """Standard output; wide enough for a table where it is no terminal."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def print_rounds(run_path: str | Path, rounds: Sequence[RoundSummary]) -> None:
    """One column a policy: the one the first round began with, then what each round made."""
    made = [r for r in rounds if r.rollouts is not None]
    if not made:
        return
    first = made[0].policy_version - 1
    out = console()
    out.print(rounds_table(made, first, accuracy(Run.open(run_path)).get(first, {})))
    for note in made[-1].notes:  # the table grows by a round; earlier notes stand above already
        out.print(f"round {made[-1].policy_version}: {note}", markup=False)


def accuracy(run: Run) -> dict[int, dict[str, float]]:
    """`grounding_metrics` of each policy, by policy_version, over what is in the eval split now."""
    rows = grounding_metrics(run.present_evaluations(), "policy_version").collect().to_dicts()
    return {row.pop("policy_version"): row for row in rows}


def rounds_table(
    rounds: Sequence[RoundSummary], first: int, before: Mapping[str, float | None]
) -> Table:
    """The table itself; `before` are the metrics of the policy that the first round began with."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("base" if first == 0 else f"policy {first}", justify="right")
    for summary in rounds:
        table.add_column(f"round {summary.policy_version}", justify="right")
    asked = (f"{r.eval_examples:,}" for r in rounds)
    table.add_row("eval examples", _count(_whole(before.get("examples"))), *asked)
    for name, metric in (("mIoU", "miou"), ("R1@0.3", "r1_30"), ("R1@0.5", "r1_50"),
                         ("R1@0.7", "r1_70")):  # fmt: skip
        start = _number(before.get(f"strict_{metric}"))
        table.add_row(f"eval {name}", start, *(_number(getattr(r, metric)) for r in rounds))
    table.add_row("reverse KL, nats a token", "", *(_number(r.reverse_kl) for r in rounds))
    mismatch = ("" if r.engine_mismatch is None else f"{r.engine_mismatch:.1e}" for r in rounds)
    table.add_row("engine against trainer, nats", "", *mismatch)
    for name, field in (("rollouts", "rollouts"), ("tokens sampled", "tokens"),
                        ("teacher passes saved", "teacher_passes_saved")):  # fmt: skip
        table.add_row(name, "", *(_count(getattr(r, field)) for r in rounds))
    table.add_section()
    for stage in STAGES:
        seconds = [r.stage_seconds.get(stage) for r in rounds]
        table.add_row(f"{stage}, s", "", *(_number(s, 1) for s in seconds))
    table.add_row("round, s", "", *(_number(sum(r.stage_seconds.values()), 1) for r in rounds))
    return table


def printable(text: str) -> str:
    """`text` without control characters: a model may sample what would move the cursor."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _number(value: float | None, digits: int = 3) -> str:
    return ABSENT if value is None else f"{value:.{digits}f}"


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _count(value: int | None) -> str:
    return ABSENT if value is None else f"{value:,}"


def write_frame(frame: pl.DataFrame, format: str, out: Path | None) -> None:
    """Write the rows of a query to `out`, else to standard output.

    `json` is an array of objects; in `csv`, lists are written as JSON; `table` shortens what is
    long. Raises `VideoOPDError` for Parquet onto a terminal and for a file that cannot be written.
    """
    if out is None:
        if format == "parquet" and sys.stdout.isatty():
            raise VideoOPDError("Parquet is not for reading; name a file with --out FILE")
        _write(frame, format, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    try:
        with out.open("wb") as file:
            _write(frame, format, file)
    except OSError as error:
        raise VideoOPDError(
            f"{out} cannot be written ({error.strerror}); choose another --out"
        ) from None


def _write(frame: pl.DataFrame, format: str, file: IO[bytes]) -> None:
    match format:
        case "json":
            file.write(frame.write_json().encode() + b"\n")
        case "csv":
            file.write(_flat(frame).write_csv().encode())
        case "parquet":
            frame.write_parquet(file)
        case _:
            file.write(_as_table(frame).encode() + b"\n")


def _flat(frame: pl.DataFrame) -> pl.DataFrame:
    """Lists and structs as JSON text, which CSV can hold."""
    import json

    import polars as pl

    def as_json(value: Any) -> str:
        return json.dumps(value.to_list() if isinstance(value, pl.Series) else value)

    nested = [name for name, dtype in frame.schema.items() if dtype.is_nested()]
    return frame.with_columns(
        pl.col(name).map_elements(as_json, return_dtype=pl.String) for name in nested
    )


def _as_table(frame: pl.DataFrame) -> str:
    import shutil

    import polars as pl

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 160
    with pl.Config(
        tbl_rows=50,
        tbl_cols=-1,
        tbl_width_chars=width,
        fmt_str_lengths=80,
        tbl_hide_column_data_types=True,
        tbl_formatting="ASCII_MARKDOWN" if not sys.stdout.isatty() else "UTF8_FULL_CONDENSED",
    ):
        return printable(str(frame))
