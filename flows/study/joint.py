"""One page of a study's conditions together: the picture, the arms, and every claim's verdicts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from flows.study.evidence import Evidence
from flows.study.front import draw_front
from flows.study.report import ABSENT, bounds, in_points, measured, with_interval


def write_joint(conditions: Sequence[Evidence], folder: Path) -> list[Path]:
    """Write the page and the picture of at least two conditions; returns their paths."""
    name = conditions[0].plan.shared.name
    page, picture = folder / f"{name}.md", folder / f"{name}.svg"
    draw_front(_in_picture(conditions), picture)
    page.write_text("\n\n".join(_blocks(conditions, picture.name)) + "\n")
    return [page, picture]


def _in_picture(conditions: Sequence[Evidence]) -> list[Evidence]:
    return [e for e in conditions if e.plan.study.in_picture]


def _blocks(conditions: Sequence[Evidence], picture: str) -> Iterator[str]:
    plan = conditions[0].plan
    yield f"# Study `{plan.shared.name}`"
    yield (
        f"Written by `videoopd study {plan.file}{' --quick' if plan.quick else ''}`; do not edit.\n"
        "Each condition has a page of its own, with all arms, intervals and definitions: "
        + ", ".join(f"[{e.plan.title}]({e.plan.name}.md)" for e in conditions)
        + "."
    )
    titles = " and ".join(e.plan.title for e in _in_picture(conditions))
    yield f"![mIoU against optimiser steps, {titles}]({picture})"
    yield "Means over seeds with 95 % bands; dashed is what trains nothing."
    yield "## Arms"
    yield "\n".join(_arms(conditions))
    yield "## Claims"
    yield "The verdict of each claim's first comparison, its value and 95 % interval."
    yield "\n".join(_claims(conditions))


def _arms(conditions: Sequence[Evidence]) -> Iterator[str]:
    titles = [e.plan.title for e in conditions]
    heads = [f"{what}, {t}" for t in titles for what in ("mIoU", "R1@0.7", "seconds longer")]
    yield "| arm | | " + " | ".join(heads) + " |"
    yield "|---" * (2 + len(heads)) + "|"
    rows = [{row.arm: row for row in e.rows} for e in conditions]
    for arm in dict.fromkeys(arm for of_one in rows for arm in of_one):
        cells: list[str] = []
        for of_one in rows:
            if (row := of_one.get(arm)) is None:
                cells += [ABSENT] * 3
                continue
            longer = row.seconds_longer
            cells += [
                with_interval(row.miou),
                in_points(row.r1_70),
                ABSENT if longer is None else with_interval(longer, "+"),
            ]
        title = next(of_one[arm].title for of_one in rows if arm in of_one)
        yield f"| `{arm}` | {title} | " + " | ".join(cells) + " |"
    yield (
        "| *annotations* | what is trained on | "
        + " | ".join(f"{ABSENT} | {ABSENT} | {e.wrongness.seconds_longer:+.3f}" for e in conditions)
        + " |"
    )


def _claims(conditions: Sequence[Evidence]) -> Iterator[str]:
    yield "| claim | " + " | ".join(e.plan.title for e in conditions) + " |"
    yield "|---" * (1 + len(conditions)) + "|"
    judged = [{claim.name: claim for claim in e.claims} for e in conditions]
    for name in dict.fromkeys(name for of_one in judged for name in of_one):
        cells = []
        for of_one in judged:
            if (claim := of_one.get(name)) is None:
                cells.append(ABSENT)
                continue
            first = claim.comparisons[0]
            cells.append(f"**{claim.verdict}**: {measured(first)} ({bounds(first)})")
        statement = next(of_one[name].statement for of_one in judged if name in of_one)
        yield f"| {name}: {statement} | " + " | ".join(cells) + " |"
