"""`videoopd show`: one rollout as a person reads it - question, answer, spans, tokens.

The spans of truth, student and teacher are drawn as bars over the length of the video; below them
every token stands with its log-probabilities and its advantage.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import polars as pl
from rich.text import Text

from flows.console.report import ABSENT, console, number, printable, table
from flows.run_tokenizer import texts_of
from opd_core.types import VideoOPDError
from storage.tables.present import latest
from storage.tables.schemas import TABLES

if TYPE_CHECKING:
    from rich.table import Table

    from storage.runs.run import Run

BAR_CELLS = 60
FEW = 5
"""Ids named where several begin alike."""


def show(run: Run, id: str) -> None:
    """Print a rollout, named by how its id or that of its example begins, if only one does.

    Raises `VideoOPDError` when the run has none of this id, and with the first few of several.
    """
    rollout = _rollout(run, id)
    rollout_id = rollout["rollout_id"]
    mine = pl.col("example_id") == rollout["example_id"]
    example = _first(latest(run.scan).filter(mine)) or {}
    predictions = (
        run.teacher_predictions()
        .filter(mine)
        .sort("teacher_hash", "prediction_index")
        .collect()
        .to_dicts()
    )
    duration = example.get("duration") or max(rollout["frame_timestamps"], default=1.0)
    out = console()
    where = f"{example.get('video_path', '?')}, {duration:.1f} s"
    out.print(Text(f"{rollout_id}  (policy {rollout['policy_version']}; {where})\n"))
    out.print(Text(f"question   {_one_line(example.get('query', '?'))}"))
    out.print(Text(f"answer     {_one_line(rollout['text'])}  ({rollout['finish_reason']})\n"))
    out.print(Text(f"           {'0 s':<{BAR_CELLS - 8}}{duration:>6.1f} s"))
    truth = (example.get("span_start"), example.get("span_end"))
    out.print(span_line("truth", *truth, duration, "", "green"))
    for start, end in example.get("other_spans", ()):
        out.print(span_line("or", start, end, duration, "", "green"))
    student = (rollout["predicted_start"], rollout["predicted_end"])
    out.print(span_line("student", *student, duration, _iou(rollout["student_iou"]), "cyan"))
    for index, prediction in enumerate(predictions, start=1):
        span = (prediction["predicted_start"], prediction["predicted_end"])
        name = f"teacher {index}"
        out.print(span_line(name, *span, duration, _iou(prediction["iou"]), "yellow"))
    if not predictions:
        out.print(Text("teacher    has no prediction for this example", style="dim"))
    if verdict := _verdict(run, rollout_id):
        out.print(Text(f"\nfocus      {verdict}"))
    out.print(_tokens(run, rollout))


def span_line(
    name: str, start: float | None, end: float | None, duration: float, note: str, colour: str
) -> Text:
    """Draw `name`, a bar with the span filled in, its seconds; an absent span is an empty bar."""
    line = Text(f"{name:<11}")
    if start is None or end is None:
        return line.append("·" * BAR_CELLS, "dim").append(f"  no span  {note}")
    first = min(BAR_CELLS - 1, max(0, round(start / duration * BAR_CELLS)))
    last = min(BAR_CELLS, max(first + 1, round(end / duration * BAR_CELLS)))
    line.append("·" * first, "dim").append("█" * (last - first), colour)
    line.append("·" * (BAR_CELLS - last), "dim")
    return line.append(f"  {start:.1f} - {end:.1f} s  {note}")


def _tokens(run: Run, rollout: dict[str, Any]) -> Table:
    ids = rollout["completion_token_ids"]
    sampling = rollout["sampling_logprobs"] or [None] * len(ids)
    student = _logprobs(run, "student_logprobs", rollout["rollout_id"], len(ids))
    teacher = _logprobs(run, "teacher_logprobs", rollout["rollout_id"], len(ids))
    made = table("token", numbers=("id", "sampling", "student", "teacher", "advantage"))
    texts = _texts(run, rollout)
    for text, token_id, pi_v, pi, q in zip(texts, ids, sampling, student, teacher, strict=True):
        advantage = None if q is None or pi_v is None else q - pi_v
        style = "" if advantage is None else ("red" if advantage < 0 else "green")
        numbers = [Text(number(value, ".4f")) for value in (pi_v, pi, q)]
        shown = Text(number(advantage, "+.4f"), style)
        made.add_row(Text(repr(text)), str(token_id), *numbers, shown)
    return made


def _rollout(run: Run, wanted: str) -> dict[str, Any]:
    """Find the one rollout whose id, or whose example's id, is `wanted` or begins so."""
    ids = run.rollouts().select("rollout_id", "example_id").collect()
    if ids.is_empty():
        raise VideoOPDError(f"{run.path} has no rollouts yet; `videoopd status` says what is next")
    begins = pl.col("rollout_id").str.starts_with(wanted)
    of_example = pl.col("example_id").str.starts_with(wanted)
    for mine in (pl.col("rollout_id") == wanted, begins, of_example):
        alike = ids.filter(mine).get_column("rollout_id").sort().to_list() if wanted else []
        if len(alike) == 1:
            return run.rollouts().filter(pl.col("rollout_id") == alike[0]).collect().to_dicts()[0]
        if alike:
            more = f" and {len(alike) - FEW} more" if len(alike) > FEW else ""
            raise VideoOPDError(
                f"{len(alike):,} rollouts begin with {wanted!r} or are of an example that does: "
                f"{', '.join(alike[:FEW])}{more}; give more of the id of one"
            )
    known = ids.get_column("rollout_id").to_list()
    near = difflib.get_close_matches(wanted, known[-20_000:], n=1) or known[-1:]
    raise VideoOPDError(f"there is no rollout {wanted!r} in {run.path}; there is {near[0]!r}")


def _logprobs(run: Run, column: str, rollout_id: str, tokens: int) -> Sequence[float | None]:
    """Read the newest log-probs of a kind for a rollout; all None where no table holds them."""
    for name, spec in TABLES.items():
        if column in {c.name for c in spec.columns}:
            rows = run.scan(name).filter(pl.col("rollout_id") == rollout_id)
            values = rows.sort("written_at").select(column).collect().to_series().to_list()
            if values:
                return list(values[-1])
    return [None] * tokens


def _texts(run: Run, rollout: dict[str, Any]) -> list[str]:
    ids = rollout["completion_token_ids"]
    texts = texts_of(run)  # the numbers can be read without one
    return [ABSENT] * len(ids) if texts is None else texts(ids)


def _verdict(run: Run, rollout_id: str) -> str | None:
    row = _first(run.selections().filter(pl.col("rollout_id") == rollout_id))
    if row is None:
        return None
    pool = "" if row["pool"] is None else f" ({row['pool']})"
    shown = {"disagreement": "+.3f", "reverse_kl": ".3f", "weight": ".3f"}
    numbers = [f"; {k} {row[k]:{style}}" for k, style in shown.items() if row[k] is not None]
    return f"{row['reason']}{pool}{''.join(numbers)}"


def _first(frame: pl.LazyFrame) -> dict[str, Any] | None:
    rows = frame.head(1).collect().to_dicts()
    return rows[0] if rows else None


def _one_line(text: str) -> str:
    return printable(text.strip().replace("\n", "\\n"))


def _iou(value: float) -> str:
    return f"IoU {value:.2f}"
