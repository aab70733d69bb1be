"""The rollouts of a run as a table: filtered, sorted, a page at a time."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.routing import BaseRoute, Route

from flows.charts.bars import Bin, histogram
from flows.charts.svg import Svg
from flows.view.listing import Listing, listing
from flows.view.place import Linker, Place, at_of
from flows.view.rollouts import ROWS, SORTS, UNDECIDED, Asked
from opd_core.types import VideoOPDError

if TYPE_CHECKING:
    import polars as pl
    from starlette.requests import Request
    from starlette.responses import Response

    from storage.runs.run import Run

BINS = 20
To = Callable[[Asked], str]
"""The link to the table as another one asks for it."""
NUMBERS = ("student_iou", "teacher_iou", "disagreement", "reverse_kl", "tokens")
"""Columns of the table that stand at the right, and whose largest come first when one clicks."""


@dataclass(frozen=True, slots=True)
class Head:
    """Of a column: where a click on it leads."""

    column: str
    text: str
    link: str
    sorted: str | None
    """`ascending` or `descending`, as ARIA has it; None: by another column."""

    @property
    def is_number(self) -> bool:
        return self.column in NUMBERS


def routes(place: Place) -> list[BaseRoute]:
    def rollouts(request: Request) -> Response:
        name = request.path_params["run"]
        run = place.run(name, at_of(request))
        words = request.query_params.multi_items()
        given = {key: value for key, value in words if key != "part"}
        page = partial(place.page, request, "rollouts.html", name=name, run=run, given=given)
        try:
            asked, listed = Asked.parse(words), listing(run)
            if (same := place.same_as(request, listed.state)) is not None:
                return same
            answer = _answer(listed, asked, name, Linker(request))
        except VideoOPDError as error:
            return page(400, problem=str(error), **_choices(run))
        return page(**answer, problem=None, **_choices(run))

    return [Route("/{run}/rollouts", rollouts)]


def _answer(listed: Listing, asked: Asked, name: str, link: Linker) -> dict[str, Any]:
    """What the page says to what is asked."""
    order = listed.order(asked)
    pages = max(1, math.ceil(len(order) / ROWS))
    if asked.page > pages:
        raise VideoOPDError(
            f"page={asked.page} is past the last, which is {pages}; give a smaller one"
        )

    def to(other: Asked) -> str:
        return link(name, "rollouts", **other.words())

    def turned(page: int) -> str | None:
        return to(asked.on(page)) if 1 <= page <= pages and page != asked.page else None

    first = (asked.page - 1) * ROWS
    rows = _rows(listed, order[first : first + ROWS])
    ious, kls = (listed.values(asked, name) for name in ("student_iou", "reverse_kl"))
    at = "" if listed.run.round is None else f"@{listed.run.round}"
    return {
        "asked": asked, "count": len(order), "total": listed.count, "pages": pages,
        "rows": [
            row | {"number": first + i, "link": link(name, "r", row["rollout_id"],
                                                     **asked.but().words())}
            for i, row in enumerate(rows, start=1)
        ],
        "heads": _heads(asked, to),
        "turn": {"first": turned(1), "prev": turned(asked.page - 1),
                 "next": turned(asked.page + 1), "last": turned(pages)},
        "iou_chart": _chart(ious, asked, "iou", "IoU with the truth", 1, to),
        "kl_chart": _chart(kls, asked, "kl", "reverse KL, nats a token", 6, to),
        "without": [(key, value, to(asked.but(**{key: None})))
                    for key, value in asked.filters.items()],
        "sql": asked.sql(),
        "command": shlex.join(["videoopd", "query", f"{listed.run.path}{at}", asked.sql()]),
    }  # fmt: skip


def _choices(run: Run) -> dict[str, Any]:
    """What a filter offers to choose from: the values that there are."""
    try:
        frame = listing(run).kept.frame
    except VideoOPDError:  # tables that cannot be read; the sentence is told already
        return {"rounds": [], "sources": [], "reasons": [], "finishes": [], "pin": None}
    versions = frame.get_column("policy_version").unique().sort().to_list()
    finished = run.finished_rounds() if run.round is None else []
    return {
        "rounds": [version + 1 for version in versions],
        "sources": _values(frame, "answered_by"),
        "reasons": _values(frame, "reason"),
        "finishes": _values(frame, "finish_reason"),
        "undecided": UNDECIDED,
        "pin": max(finished, default=None),
    }


def _values(frame: pl.DataFrame, column: str) -> list[str]:
    import polars as pl

    return sorted(frame.get_column(column).drop_nulls().unique().cast(pl.String).to_list())


def _rows(listed: Listing, rows: pl.Series) -> list[dict[str, Any]]:
    """The rows of a page, as the view has them."""
    import polars as pl

    if rows.is_empty():
        return []
    names = ("rollout_id", "example_id", "text", "predicted_start", "predicted_end")
    told = listed.kept.read(rows, names)
    ids = told.get_column("example_id").unique()
    examples = (
        listed.run.examples()
        .filter(pl.col("example_id").is_in(ids.implode()))
        .select("example_id", "query", "span_start", "span_end")
        .collect()
    )
    told = told.join(examples, on="example_id", how="left", maintain_order="left")
    kept = listed.kept.frame[rows].drop("predicted_start", strict=False)
    return pl.concat([kept, told], how="horizontal").to_dicts()


def _heads(asked: Asked, to: To) -> list[Head]:
    now, down = asked.sorted_by
    heads = []
    for column, text in SORTS.items():
        largest_first = not down if column == now else column in NUMBERS
        arrow = ("descending" if down else "ascending") if column == now else None
        link = to(asked.but(sort=f"{'-' if largest_first else ''}{column}"))
        heads.append(Head(column, text, link, arrow))
    return heads


def _chart(values: pl.Series, asked: Asked, what: str, label: str, ink: int, to: To) -> Svg:
    """A histogram of what the filter leaves; a click on a bin narrows the filter to it."""
    low, below = getattr(asked, f"{what}_from"), getattr(asked, f"{what}_below")
    known = values.drop_nulls().drop_nans()
    edges = _edges(known, *((low, below) if what == "kl" else (low or 0.0, below or 1.0)))
    counts = counted(known, edges)
    bins = []
    for i, count in enumerate(counts):
        is_last = i == len(counts) - 1  # its upper end is in it: 1 is an IoU
        narrowed = {f"{what}_from": edges[i], f"{what}_below": below if is_last else edges[i + 1]}
        bins.append(
            Bin(edges[i], edges[i + 1], count, to(asked.but(**narrowed)) if count else None)
        )
    absent = len(values) - len(known)
    of = f"{label}{f' ({absent:,} have none)' if absent else ''}"
    return histogram(bins, title=of, x_label=label, ink=ink, width=560, height=170)


def _edges(values: pl.Series, low: float | None, high: float | None) -> list[float]:
    """Ends of bins that hold all values, at round numbers but for ends that are given."""
    known: Sequence[float] = [] if values.is_empty() else [float(values.min()), float(values.max())]  # type: ignore[arg-type]
    least = min(known, default=0.0) if low is None else low
    most = max(known, default=least + 1.0) if high is None else high
    if high is None:
        most = max(most, least + 0.01)
    elif least >= most:  # nothing can be there
        least = most - 1.0
    rough = (most - least) / BINS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(least / step), math.ceil(most / step)
    edges = [float(f"{i * step:.12g}") for i in range(first, last + 1)]
    edges = [edges[0] - step] * (edges[0] > least) + edges + [edges[-1] + step] * (edges[-1] < most)
    inner = [edge for edge in edges[1:-1] if least < edge < most]
    return [edges[0] if low is None else least, *inner, edges[-1] if high is None else high]


def counted(values: pl.Series, edges: Sequence[float]) -> list[int]:
    """How many values lie from an edge to below the next one; the last end is in the last bin.

    Compared as SQL compares them: edges in the precision of the values.
    """
    import numpy as np

    numbers = values.to_numpy()
    ends = np.asarray(edges, dtype=numbers.dtype)
    places = np.searchsorted(ends, numbers, side="right") - 1
    places[numbers == ends[-1]] = len(edges) - 2
    inside = places[(places >= 0) & (places < len(edges) - 1)]
    counts: list[int] = np.bincount(inside, minlength=len(edges) - 1).tolist()
    return counts
