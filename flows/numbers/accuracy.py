"""How well each policy answers what is in the eval split now: every metric, with its interval."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from opd_core.spans.bootstrap import Estimate, estimates
from opd_core.spans.metrics import per_example, titles

if TYPE_CHECKING:
    from storage.runs.run import Run

_KNOWN: dict[object, dict[str, Estimate]] = {}
"""Intervals that were computed before in this process: an answer never changes."""
_AT_MOST = 4096


def intervals(rows: pl.DataFrame) -> dict[str, Estimate]:
    """metric -> its mean and 95 % interval, whole videos drawn again.

    `rows`: one an answer, the columns of `per_example`, and `video`.
    """
    names = list(per_example())
    values = rows.select(pl.col(names).cast(pl.Float64)).to_numpy()
    made = estimates(np.ascontiguousarray(values), rows["video"].to_list())
    return dict(zip(names, made, strict=True))


def accuracy(run: Run, only: int | None = None) -> dict[int, dict[str, float | int | None]]:
    """policy_version -> `eval_examples`, and each metric with its ends (`strict_miou_low`,
    `strict_miou_high`); of all policies that have answers, or of `only` one."""
    rows = run.present_evaluations()
    if only is not None:
        rows = rows.filter(pl.col("policy_version") == only)
    answers = (
        rows.select(
            "policy_version", "example_id",
            *(value.alias(name) for name, value in per_example().items()),
        )
        .sort("policy_version", "example_id")
        .collect()
    )  # fmt: skip
    # Few examples of many: Lance finds them, and the others are not read.
    asked = pl.col("example_id").is_in(answers["example_id"].unique().to_list())
    videos = run.examples().filter(asked).select("example_id", video="video_path").collect()
    answers = answers.join(videos, on="example_id", maintain_order="left")
    made: dict[int, dict[str, float | int | None]] = {}
    for (version,), mine in answers.group_by("policy_version", maintain_order=True):
        assert isinstance(version, int)
        numbers = made[version] = {"eval_examples": mine.height}
        key = (run.path, version, mine.hash_rows().sum(), mine.height)
        if (known := _KNOWN.get(key)) is None:  # several threads may ask at once
            if len(_KNOWN) >= _AT_MOST:
                _KNOWN.clear()
            known = _KNOWN[key] = intervals(mine)
        for name, estimate in known.items():
            numbers |= {
                name: estimate.value,
                f"{name}_low": estimate.low,
                f"{name}_high": estimate.high,
            }
    return made


def metric_meanings() -> dict[str, str]:
    """Column of a metric, or of an end of its interval -> what it means."""
    known: dict[str, str] = {}
    for name in per_example():
        if name.endswith("parse_failures"):
            protocol = name.removesuffix("parse_failures").rstrip("_") or "strict"
            what = f"Share of the eval answers in which protocol {protocol} reads no span"
        else:
            protocol, _, end = name.partition("_")
            what = f"{titles()[end]} over the eval answers, by protocol {protocol}"
        known[name] = f"{what}; null where a row has no value."
        for end in ("low", "high"):
            known[f"{name}_{end}"] = (
                f"{end.capitalize()} end of the 95 % interval of {name}, by video; null with fewer"
                " than two videos."
            )
    return known
