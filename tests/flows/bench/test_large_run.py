"""A run with each of its rows many times is a run of as many examples."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from flows.bench.large_run import multiply
from opd_core.types import Draw, GroundingExample, Span
from storage.runs.run_folder import CONFIG_SOURCE_FILE
from storage.tables.schemas import TABLES
from tests.storage.storage_factories import new_run, rollout, selection, update


def test_copies_are_examples_of_their_own_and_one_row_else(tmp_path: Path) -> None:
    small = new_run(tmp_path)
    (small.path / CONFIG_SOURCE_FILE).write_text("{}")
    (small.path / "policies").mkdir(exist_ok=True)
    rows = [rollout(index, version) for version in (0, 1) for index in range(3)]
    ids = {row.example_id for row in rows}
    small.append("examples", [
        GroundingExample(e, "a.mp4", 9.0, "?", Span(1.0, 2.0), "s", "train") for e in ids
    ])  # fmt: skip
    for version in (0, 1):
        mine = [row for row in rows if row.policy_version == version]
        small.append("draws", [Draw(version, e, n) for n, e in enumerate(sorted(ids))])
        small.append("rollouts", mine)
        small.append("selections", [
            selection(rollout_id=r.rollout_id, policy_version=version, example_id=r.example_id)
            for r in mine
        ])  # fmt: skip
        small.append("updates", [update(version + 1)])
    large = multiply(small.path, tmp_path / "large", 4 * len(rows) - 1)
    for name, times in (("examples", 4), ("draws", 4), ("rollouts", 4), ("selections", 4),
                        ("updates", 1)):  # fmt: skip
        found, source = large.scan(name).collect(), small.scan(name).collect()
        assert found.height == times * source.height
        assert found.select(TABLES[name].key).is_unique().all(), name
        own = found.columns if name == "updates" else TABLES[name].key
        assert source.drop("run_id").join(found, on=[c for c in own if c != "run_id"],
                                          nulls_equal=True).height == source.height  # fmt: skip
    found = large.rollouts().join(large.examples(), on="example_id").collect()
    assert found.height == 4 * len(rows)
    assert found.select(pl.col("rollout_id").str.contains(pl.col("example_id"))).to_series().all()
    assert large.draws().select(pl.col("position").unique().len()).collect().item() == 4 * len(ids)
    assert large.finished_rounds() == [1, 2]
    assert set(large.rollouts().collect()["run_id"]) == {large.run_id}
