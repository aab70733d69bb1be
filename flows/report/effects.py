"""What training did to the answers: means with their intervals, and paired differences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flows.evaluation.answers import Answers
from flows.evaluation.groups import Group, compare, groups
from flows.report.side import Side
from flows.report.table import Cell, Table, interval, shortened, whole
from opd_core.spans.bootstrap import Estimate
from opd_core.spans.metrics import no_span
from opd_core.spans.protocols.known import PROTOCOLS
from opd_core.types import VideoOPDError

POLICIES_SHOWN = 40
GROUPS_SHOWN = 20
HEADLINE = "strict_miou"
INTERVALS = (
    "In brackets 95 % intervals: whole videos are drawn again, because the sentences of a video are"
    " alike. A difference is the second minus the first, of the sentences that both answered; where"
    " its interval does not hold 0, chance alone hardly made it. An answer without a span is IoU 0."
)


@dataclass(frozen=True, slots=True)
class Headline:
    """The one number of a comparison."""

    what: str
    before: str
    after: str
    difference: str


@dataclass(frozen=True, slots=True)
class Effects:
    """Tables about the eval split."""

    headlines: tuple[Headline, ...]
    policies: tuple[Table, ...]
    """Each policy of a run."""
    compared: tuple[Table, ...]
    """Two policies on the same sentences, by every protocol."""
    groups: tuple[Table, ...]
    """By source and by length of the video."""
    missing: tuple[str, ...]
    """What could not be compared, and why."""


def effects(sides: Sequence[Side]) -> Effects:
    """Compare the first and the last policy of each side, and the last ones of two sides."""
    headlines: list[Headline] = []
    compared: list[Table] = []
    missing: list[str] = []
    for a, b, title, (name_a, name_b) in _pairs(sides, missing):
        try:
            made = compare(b, a)  # its difference is the second's minus the first's
        except VideoOPDError as error:
            missing.append(str(error))
            continue
        names = name_a, name_b
        compared.append(_comparison(title, names, made.of_b, made.of_a, made.difference))
        values = (g.metrics[HEADLINE] for g in (made.of_b, made.of_a, made.difference))
        before, after, difference = values
        headlines.append(
            Headline(
                f"Eval mIoU, {title}",
                f"{name_a}: {interval(before)}",
                f"{name_b}: {interval(after)}",
                interval(difference, signed=True) or "",
            )
        )
    return Effects(
        tuple(headlines),
        tuple(_policies(side) for side in sides if side.evaluated),
        tuple(compared),
        tuple(table for side in sides for table in _groups(side)),
        tuple(missing),
    )


def _pairs(
    sides: Sequence[Side], missing: list[str]
) -> Iterator[tuple[Answers, Answers, str, tuple[str, str]]]:
    """Two that answered, what is compared, and how each of them is called."""
    newest = [side.newest for side in sides]
    if len(newest) == 2 and newest[0] is not None and newest[1] is not None:
        a, b = sides
        names = [f"{side.name}, policy {side.evaluated[-1]}" for side in sides]
        yield newest[0], newest[1], f"{a.name} to {b.name}", (names[0], names[1])
    for side in sides:
        if side.first is None:
            missing.append(f"No policy of {side.name} has answered the eval split.")
        elif side.last is None:
            missing.append(f"Only policy {side.evaluated[0]} of {side.name} has been evaluated.")
        else:
            first, last = (f"policy {side.evaluated[at]}" for at in (0, -1))
            yield side.first, side.last, f"{side.name}, {first} to {last}", (first, last)


def _comparison(title: str, names: tuple[str, str], a: Group, b: Group, difference: Group) -> Table:
    rows = []
    for metric, words in _metrics():
        estimates = a.metrics[metric], b.metrics[metric]
        apart = difference.metrics[metric]
        if any(one.value is not None for one in estimates):
            rows.append((words, *map(interval, estimates), interval(apart, signed=True)))
    note = f"Sentences answered by both: {difference.examples:,}, videos: {difference.videos:,}."
    return Table(title, ("", *names, "difference"), tuple(rows), note=note)


def _metrics() -> Iterator[tuple[str, str]]:
    """Each metric of every protocol, and how people call it."""
    for name in PROTOCOLS:
        for metric, title in PROTOCOLS[name].metrics.items():
            yield f"{name}_{metric}", f"{title}, {name}"
    for name in dict.fromkeys(no_span(name) for name in PROTOCOLS):
        protocol = name.removesuffix("parse_failures").rstrip("_") or "strict"
        yield name, f"answers without a span, {protocol}"


def _policies(side: Side) -> Table:
    shown = (HEADLINE, "strict_r1_30", "strict_r1_50", "strict_r1_70", "parse_failures")
    rows: list[tuple[Cell, ...]] = []
    for row in side.rounds.to_dicts():
        cells = (
            interval(Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"])) for name in shown
        )
        rows.append((str(row["policy_version"]), whole(row["eval_examples"]), *cells))
    head = ("policy", "examples", "mIoU", "R1@0.3", "R1@0.5", "R1@0.7", "without a span")
    return Table(f"Policies of {side.name}", head, shortened(rows, POLICIES_SHOWN))


def _groups(side: Side) -> Iterator[Table]:
    for by, words in (("source", "source"), ("duration", "length of the video")):
        columns = [answers for answers in (side.first, side.last) if answers is not None]
        if not columns:
            continue
        known = [list(groups(answers, by))[1:] for answers in columns]
        if max(map(len, known)) < 2:  # the whole again
            continue
        of_each = [{group.name: group for group in some} for some in known]
        rows: list[tuple[Cell, ...]] = []
        for name in dict.fromkeys(name for some in of_each for name in some):
            mine = [some.get(name) for some in of_each]
            count = next(group.examples for group in reversed(mine) if group is not None)
            cells = (interval(g.metrics[HEADLINE]) if g is not None else None for g in mine)
            rows.append((name, whole(count), *cells))
        versions = dict.fromkeys((side.evaluated[0], side.evaluated[-1]))
        head = ("", "examples", *(f"policy {version}" for version in versions))
        yield Table(f"mIoU of {side.name}, by {words}", head, shortened(rows, GROUPS_SHOWN))
