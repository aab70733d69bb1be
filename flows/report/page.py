"""The report as text: all sections, made of one or two runs, in one template."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from flows.charts.svg import style
from flows.report.audited import Audited, audited
from flows.report.changes import Changes, changes
from flows.report.costs import Costs, costs
from flows.report.curves import Curves, over_rounds, over_steps
from flows.report.effects import INTERVALS, Effects, effects
from flows.report.failures import Failures, failures
from flows.report.inputs import Inputs, inputs
from flows.report.lost import lost
from flows.report.side import sides
from flows.report.table import Table
from storage.tables.provenance import git_commit

if TYPE_CHECKING:
    from storage.runs.run import Run

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Report:
    """All that a report says, section by section."""

    names: tuple[str, ...]
    """Of the runs."""
    made_at: str
    made_by: str | None
    """Commit of this program; None outside a checkout."""
    inputs: Inputs
    rounds: Curves
    steps: Curves
    effects: Effects
    changes: Changes | None
    failures: Failures | None
    costs: Costs
    lost: tuple[Table, ...]
    audited: tuple[Audited, ...]

    @property
    def title(self) -> str:
        return f"Report of {' and '.join(self.names)}"


def report(runs: Sequence[Run], now: datetime | None = None) -> Report:
    """Read all of it from one run or two, as they are at this moment, also where a round goes on.

    Raises `VideoOPDError` where rows name what is gone.
    """
    of = sides([run.frozen() for run in runs])
    return Report(
        names=tuple(side.name for side in of),
        made_at=f"{now or datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        made_by=git_commit(),
        inputs=inputs(of),
        rounds=over_rounds(of),
        steps=over_steps(of),
        effects=effects(of),
        changes=changes(of),
        failures=failures(of),
        costs=costs(of),
        lost=lost(of),
        audited=audited(of),
    )


def html(made: Report) -> str:
    """Write a report as one HTML file that loads nothing: its policy forbids all but its own style
    and the pictures in it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    css = style() + (HERE / "templates" / "report.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'"
    page = templates.get_template("report.html")
    return page.render(
        report=made, css=css, policy=f"{policy}; form-action 'none'", intervals=INTERVALS
    )
