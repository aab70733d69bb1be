"""The page of a round, as Markdown. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.summaries import RoundSummary
from opd_core.types import StageUse

ABSENT = "-"
GIGABYTE = 1e9


@dataclass(frozen=True, slots=True)
class RoundPage:
    """What is said of a round."""

    run: Path
    before: Mapping[str, float | None]
    """Column of `grounding_metrics` -> value of the policy that the round samples from."""
    after: RoundSummary
    reasons: Sequence[tuple[str, int]]
    """Why rollouts were selected or not, and how many."""
    uses: Sequence[StageUse]

    @property
    def round(self) -> int:
        return self.after.policy_version


def markdown(page: RoundPage) -> str:
    """Before and after, selected and why, cost, and the commands to look further."""
    after = page.after
    parts = [
        f"## {page.run.name}, round {page.round}",
        f"Policy {page.round - 1} answered, policy {page.round} was made, and both answered the "
        f"eval split ({after.eval_examples:,} examples).",
        _table(["", "before", "after", "change"], _scores(page)),
        "### Selected, and why",
        _table(["reason", "rollouts"], [[why, f"{count:,}"] for why, count in page.reasons]),
        "### Cost",
        _table(["stage", "seconds", "tokens a second", "memory, GB"], _costs(page.uses)),
    ]
    if after.notes:
        parts += ["### Notes", "\n".join(f"- {note}" for note in after.notes)]
    return "\n\n".join([*parts, "### Look further", _commands(page)]) + "\n"


def _scores(page: RoundPage) -> Iterable[Sequence[str]]:
    """As code what has an @, or Prefect's page makes it an address to write to."""
    after = page.after
    for name, column, now in (
        ("mIoU", "strict_miou", after.miou),
        ("`R1@0.3`", "strict_r1_30", after.r1_30),
        ("`R1@0.5`", "strict_r1_50", after.r1_50),
        ("`R1@0.7`", "strict_r1_70", after.r1_70),
        ("answers without a span", "parse_failures", after.no_span),
    ):
        then = page.before[column]
        change = None if then is None or now is None else now - then
        yield [name, _number(then), _number(now), ABSENT if change is None else f"{change:+.3f}"]


def _costs(uses: Sequence[StageUse]) -> Iterable[Sequence[str]]:
    for use in uses:
        speed = use.tokens_per_second
        yield [
            use.stage,
            f"{use.seconds:,.1f}",
            ABSENT if speed is None else f"{speed:,.0f}",
            f"{use.peak_memory / GIGABYTE:.1f} ({use.memory_of})",
        ]


def _commands(page: RoundPage) -> str:
    run, round = shlex.quote(str(page.run)), page.round
    where = f"WHERE policy_version = {round - 1} GROUP BY reason"
    why = f"SELECT reason, count(*) AS n FROM selections {where}"
    return "\n".join(
        [
            "```",
            f"videoopd status {run}",
            f'videoopd query {run} "{why}"',
            f"videoopd audit {run}@{round}",
            f"videoopd view {run}@{round}",
            "```",
            "",
            "`view` opens the videos beside the tokens; it prints a link, which is valid while it "
            "runs.",
        ]
    )


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Numbers to the right."""
    line = ["---", *("---:" for _ in names[1:])]
    escaped = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join("| " + " | ".join(row) + " |" for row in (names, line, *escaped))


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3f}"
