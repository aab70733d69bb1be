"""What the commands print: the console they share, and the table of rounds."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from flows.console.progress import is_quiet
from opd_core.spans.metrics import grounding_metrics
from storage.runs.run import Run
from storage.stages import STAGES

if TYPE_CHECKING:
    from flows.summaries import RoundSummary

ABSENT = "-"


def console() -> Console:
    """Open standard output; wide enough for a table where it is no terminal."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def table(*words: str, numbers: Sequence[str] = (), title: str | None = None) -> Table:
    """Make a table without rows: columns of words, then columns of numbers."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    for name in words:
        made.add_column(name, overflow="fold")
    for name in numbers:
        made.add_column(name, justify="right")
    return made


def print_rounds(run_path: str | Path, rounds: Sequence[RoundSummary], last: bool = True) -> None:
    """Print a column a policy: the one the first round began with, then what each round made.

    Quietly it is one line, and only of the last round.
    """
    made = [r for r in rounds if r.rollouts is not None]
    if not made:
        return
    if is_quiet():
        if last:
            final = made[-1]
            print(f"round {final.policy_version}: eval mIoU {number(final.miou)}; {run_path}")
        return
    first = made[0].policy_version - 1
    before = accuracy(Run.open(run_path)).get(first, {})
    console().print(rounds_table(made, first, before))
    begun = [r for r in rounds if r.rollouts is None] if len(made) == 1 else []
    for note in (note for r in begun for note in r.notes):
        print(f"before: {note}")
    for note in made[-1].notes:  # the table grows by a round; earlier notes stand above already
        print(f"round {made[-1].policy_version}: {note}")


def accuracy(run: Run) -> dict[int, dict[str, float]]:
    """Measure each policy over what is in the eval split now: policy_version -> its metrics."""
    rows = grounding_metrics(run.present_evaluations(), "policy_version").collect().to_dicts()
    return {row.pop("policy_version"): row for row in rows}


def rounds_table(
    rounds: Sequence[RoundSummary], first: int, before: Mapping[str, float | None]
) -> Table:
    """Make the table of rounds; `before`: metrics of the policy that the first one began with."""
    begun_with = "base" if first == 0 else f"policy {first}"
    made = table("", numbers=[begun_with, *(f"round {r.policy_version}" for r in rounds)])
    asked = (f"{r.eval_examples:,}" for r in rounds)
    made.add_row("eval examples", number(before.get("examples"), ",.0f"), *asked)
    for name, metric in (("mIoU", "miou"), ("R1@0.3", "r1_30"), ("R1@0.5", "r1_50"),
                         ("R1@0.7", "r1_70")):  # fmt: skip
        start = number(before.get(f"strict_{metric}"))
        made.add_row(f"eval {name}", start, *(number(getattr(r, metric)) for r in rounds))
    no_span = number(before.get("parse_failures"))
    made.add_row("eval answers without a span", no_span, *(number(r.no_span) for r in rounds))
    made.add_row("reverse KL (k1), nats a token", "", *(number(r.sampling_k1) for r in rounds))
    mismatch = (number(r.engine_mismatch, ".1e", absent="") for r in rounds)
    made.add_row("engine against trainer, nats", "", *mismatch)
    for name, field in (("rollouts", "rollouts"),
                        ("rollouts without a span", "rollouts_without_span"),
                        ("tokens sampled", "tokens"),
                        ("teacher passes saved", "teacher_passes_saved"),
                        ("left out in the round", "left_out"),
                        ("annotations left out", "annotations_left_out")):  # fmt: skip
        made.add_row(name, "", *(number(getattr(r, field), ",") for r in rounds))
    made.add_section()
    for stage in STAGES:
        seconds = [r.stage_seconds.get(stage) for r in rounds]
        made.add_row(f"{stage}, s", "", *(number(s, ".1f") for s in seconds))
    made.add_row("round, s", "", *(number(sum(r.stage_seconds.values()), ".1f") for r in rounds))
    return made


def printable(text: str) -> str:
    """Escape control characters: a model may sample what would move the cursor."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def cut(text: str, longest: int) -> str:
    """Shorten a text to so many characters, of which the last three then say that it goes on."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def size_text(count: int, precision: int = 0) -> str:
    """Format a number of bytes: `35 MB`."""
    return decimal(count, precision=precision)


def number(value: float | None, style: str = ".3f", absent: str = ABSENT) -> str:
    """Format a number; `absent` stands for none."""
    return absent if value is None else f"{value:{style}}"
