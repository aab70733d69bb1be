"""Which examples a draw leaves out because they could not be used, and for how long.

Not for ever, where it was an accident of the moment, or what was wrong has been mended: see the
kinds in `opd_core/faults.py`.
"""

from __future__ import annotations

import polars as pl

from flows.stage.prepare import Work
from opd_core.faults import DURATION, NEXT_ROUND, OF_THE_SETTINGS, ONE_MORE_ROUND
from opd_core.types import Policy
from storage.tables.present import CORRECTED


def given_up(work: Work, policy: Policy) -> set[str]:
    """What the round that samples from `policy` does not draw.

    By rows of `quarantine` in force, and superseded ones that nothing has refuted: a rerun that got
    rollouts of the example. What could not be read is only left out of other draws of the round in
    which that was.
    """
    columns = ("item_id", "stage", "policy_version", "kind", "config_hash")
    every = work.run.scan("quarantine", superseded=True).select(columns)
    sampled = work.run.rollouts().select("policy_version", item_id="example_id")
    unrefuted = every.join(sampled, on=["item_id", "policy_version"], how="anti", nulls_equal=True)
    rows = pl.concat([unrefuted, work.run.quarantine().select(columns)])
    corrected = (
        work.run.data_changes()
        .filter(pl.col("change") == CORRECTED)
        .group_by("item_id")
        .agg(corrected_at=pl.col("newest_policy").max())
    )
    kind, version = pl.col("kind").fill_null(""), pl.col("policy_version").fill_null(0)
    rounds = pl.col("policy_version").n_unique().over("item_id", "kind")
    earlier = version != policy.version
    again = (
        (kind.is_in(list(NEXT_ROUND)) & earlier)
        | (kind.is_in(list(ONE_MORE_ROUND)) & earlier & (rounds < 2))
        | (kind.is_in(list(OF_THE_SETTINGS)) & (pl.col("config_hash") != work.config.hash))
        | ((kind == DURATION) & (pl.col("corrected_at") >= version).fill_null(False))
    )
    with_corrections = rows.filter(pl.col("stage") != "import").join(
        corrected, on="item_id", how="left"
    )
    return set(with_corrections.collect().filter(~again)["item_id"])
