"""`videoopd bench store`: the store at a million trajectories, against what the project promises.

Filled and asked by `flows/bench/tables.py`, each in a process of its own on two cores; TVDF over
all rows here, because it is the algorithm's. The folder (about 1.5 GB) is temporary.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.bench.interleaved import Row, at_least, at_most
from flows.bench.tables import TOKENS, limit_cores, peak_memory
from opd_core.types import VideoOPDError

ROWS = 1_000_000
GIB = 4.0
"""Memory that no part of it may exceed."""


def store_rows(rows: int = ROWS) -> Iterator[Row]:
    """Every number of the store, in the terms of the other benches."""
    with tempfile.TemporaryDirectory(prefix="videoopd-bench-") as scratch:
        folder = Path(scratch) / "tables"
        filled = _child("flows.bench.tables", "fill", folder, rows)
        yield from _filled(filled)
        tvdf = _child("flows.bench.store", "tvdf", folder)
        yield at_most("store: TVDF over all rows", tvdf["seconds"], 2.0, " s", **tvdf)
        yield at_most("store: peak memory of TVDF", tvdf["peak GiB"], 1.0, " GiB", **tvdf)
        asked = _child("flows.bench.tables", "ask", folder)
        yield from _asked(asked, rows)
        peak = max(part["peak GiB"] for part in (filled, tvdf, asked))
        yield at_most("store: peak memory of any part", peak, GIB, " GiB")


def _filled(filled: dict[str, Any]) -> Iterator[Row]:
    count, seconds, size = filled["rows"], filled["seconds"], filled["bytes"]
    both = seconds["rollouts"] + seconds["teacher_scores"]
    yield Row(
        "store: trajectories appended, rollout and score", count / both, "/s", "measured", None,
        {"batch": filled["batch"], **seconds, "peak GiB": filled["peak GiB"]},
    )  # fmt: skip
    yield Row(
        "store: bytes a trajectory, rollout and score",
        (size["rollouts"] + size["teacher_scores"]) / count, " B", "measured", None,
        {"completion tokens": TOKENS, "with what tags keep": filled["bytes with what tags keep"],
         **size},
    )  # fmt: skip


def _asked(asked: dict[str, Any], rows: int) -> Iterator[Row]:
    lookups, fresh = asked["lookups"], asked["on a new scan"]
    yield at_most(
        "store: lookup of a rollout, p95", 1000 * _p95(lookups), 20.0, " ms",
        median=1000 * statistics.median(lookups), lookups=len(lookups),
        p95_on_a_new_scan=1000 * _p95(fresh),
    )  # fmt: skip
    ratios = {
        name: {**seconds, "ratio": seconds["parquet"] / seconds["lance"]}
        for name, seconds in asked.items()
        if isinstance(seconds, dict) and "parquet" in seconds
    }
    first = next(iter(ratios))
    yield at_least(
        f"store: filter and columns against zstd Parquet ({first})", ratios[first]["ratio"], 2.0,
        queries=ratios,
    )  # fmt: skip
    take = asked["take"]
    best = min(seconds for name, seconds in take.items() if name.startswith("parquet"))
    yield at_least(
        "store: 100 random rows against zstd Parquet", best / take["lance"], 20.0, seconds=take
    )
    yield at_most(
        "store: opening the tables of a run and counting its rollouts",
        asked["opening"],
        0.5,
        " s",
        rows=rows,
    )


def _p95(seconds: list[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.95)]


def tvdf(folder: Path) -> dict[str, Any]:
    """Focus over every rollout of the tables as if they were one round."""
    import polars as pl

    from opd_core.config.sections import FocusSection
    from opd_core.focus.select import select
    from storage.tables.lance_tables import Tables

    tables = Tables.open(folder)
    settings = FocusSection(top_k=10_000)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        columns = ("rollout_id", "example_id", "policy_version", "student_iou")
        chosen = select(
            tables.scan("rollouts").select(columns),
            tables.scan("teacher_predictions").select("example_id", "iou"),
            settings,
        ).collect()
        seconds.append(time.perf_counter() - began)
    count = int(chosen.select(pl.col("selected").sum()).item())
    return {
        "seconds": statistics.median(seconds), "each": seconds, "rows": chosen.height,
        "selected": count, **peak_memory(),
    }  # fmt: skip


def _child(module: str, what: str, *arguments: object) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", module, what, *(str(a) for a in arguments)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise VideoOPDError(f"the store bench ended while it was to {what} ({last}); free memory"
                            " or disk and run it again")  # fmt: skip
    content: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return content


if __name__ == "__main__":
    limit_cores()
    print(json.dumps(tvdf(Path(sys.argv[2]))))
