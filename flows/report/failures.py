"""How answers to the eval split fail: without a span, beside the truth, too long, and so on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from flows.charts.bars import Stack, stacked_bars
from flows.charts.svg import Svg
from flows.report.side import Side
from flows.report.table import Cell, Table

GOOD = 0.5
"""An answer whose IoU is below this has failed."""
KINDS = {
    "right": f"IoU of {GOOD:g} or more",
    "too long": "begins no later and ends no earlier than the truth",
    "too short": "begins no earlier and ends no later than the truth",
    "wrong start": "overlaps, and the start is further off than the end",
    "wrong end": "overlaps, and the end is as far off as the start, or further",
    "beside": "does not overlap with the truth",
    "no span": "holds no span that can be read",
}
"""Kind -> what it means; each answer is of the first that it can be, from `no span` upwards."""
COLOURS = {
    "right": 3, "too long": 4, "too short": 5, "wrong start": 8, "wrong end": 2, "beside": 7,
    "no span": 6,
}  # fmt: skip
POLICIES_DRAWN = 30


@dataclass(frozen=True, slots=True)
class Failures:
    """How often each kind of answer comes."""

    table: Table
    charts: tuple[Svg, ...]


def failures(sides: Sequence[Side]) -> Failures | None:
    """Count the kinds of answers of each evaluated policy; None where none is evaluated."""
    counted = {side.name: counts(side) for side in sides if side.evaluated}
    if not counted:
        return None
    columns: dict[str, dict[str, int]] = {}
    for name, of_policy in counted.items():
        for version in dict.fromkeys((min(of_policy), max(of_policy))):
            said = f"policy {version}" if len(counted) == 1 else f"{name}, policy {version}"
            columns[said] = of_policy[version]
    rows: list[tuple[Cell, ...]] = []
    for kind, meaning in KINDS.items():
        cells = (_share(column.get(kind, 0), sum(column.values())) for column in columns.values())
        rows.append((f"{kind}: {meaning}", *cells))
    note = "By the strict protocol. The truth is the annotated span that the answer fits best."
    charts = (
        stacked_bars(
            [
                Stack(str(version), {kind: kinds.get(kind, 0) for kind in KINDS})
                for version, kinds in list(of_policy.items())[-POLICIES_DRAWN:]
            ],
            title=f"Answers of {name}",
            x_label="policy",
            y_label="answers",
            colours=COLOURS,
        )
        for name, of_policy in counted.items()
    )
    return Failures(Table("Answers by kind", ("", *columns), tuple(rows), note=note), tuple(charts))


def counts(side: Side) -> dict[int, dict[str, int]]:
    """policy_version -> kind -> answers to what is in the eval split now."""
    rows = kinds(side).group_by("policy_version", "kind").len().sort("policy_version")
    made: dict[int, dict[str, int]] = {}
    for version, kind, count in rows.iter_rows():
        made.setdefault(version, {})[kind] = count
    return made


def kinds(side: Side) -> pl.DataFrame:
    """policy_version, example_id, kind: a row an answer."""
    answers = side.run.present_evaluations().select(
        "policy_version", "example_id", "iou", start="predicted_start", end="predicted_end"
    )
    joined = answers.join(_windows(side), on="example_id").collect()
    overlap = pl.min_horizontal("end", "window_end") - pl.max_horizontal("start", "window_start")
    union = pl.max_horizontal("end", "window_end") - pl.min_horizontal("start", "window_start")
    return (
        joined.with_columns(fit=overlap / union)
        .sort("fit", descending=True, nulls_last=True, maintain_order=True)
        .unique(["policy_version", "example_id"], keep="first", maintain_order=True)
        .select("policy_version", "example_id", kind=kind())
    )


def _windows(side: Side) -> pl.LazyFrame:
    """example_id, window_start, window_end: a row a time at which a sentence is true."""
    present = side.run.present().filter(pl.col("split") == "eval")
    first = present.select("example_id", window_start="span_start", window_end="span_end")
    others = (
        present.select("example_id", other="other_spans")
        .explode("other")
        .drop_nulls("other")
        .select(
            "example_id",
            window_start=pl.col("other").list.get(0),
            window_end=pl.col("other").list.get(1),
        )
    )
    return pl.concat([first, others])


def kind() -> pl.Expr:
    """Names the kind of an answer by its start, end and iou, beside the window it fits best."""
    begins_after = pl.col("start") >= pl.col("window_start")
    begins_before = pl.col("start") <= pl.col("window_start")
    ends_after = pl.col("end") >= pl.col("window_end")
    ends_before = pl.col("end") <= pl.col("window_end")
    start_off = (pl.col("start") - pl.col("window_start")).abs()
    end_off = (pl.col("end") - pl.col("window_end")).abs()
    return (
        pl.when(pl.col("start").is_null())
        .then(pl.lit("no span"))
        .when(pl.col("iou") >= GOOD)
        .then(pl.lit("right"))
        .when(pl.col("iou") <= 0)
        .then(pl.lit("beside"))
        .when(begins_before & ends_after)
        .then(pl.lit("too long"))
        .when(begins_after & ends_before)
        .then(pl.lit("too short"))
        .when(start_off > end_off)
        .then(pl.lit("wrong start"))
        .otherwise(pl.lit("wrong end"))
    )


def _share(count: int, total: int) -> Cell:
    return f"{count:,} ({count / total:.1%})" if total else None
