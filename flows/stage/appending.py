"""What a stage computes goes to the tables in few, large appends, and none of it is dropped.

    with appending(run, "rollouts", "rollout", 0, flush_seconds=30) as rows:
        for batch in batches:
            rows.add(batch)

Batches are collected until `storage.flush_seconds` have passed since the last append, and appended
when the stage ends, also when an error or Ctrl-C ends it. A process that is killed outright loses
what was collected and the batch it was working on: at most flush_seconds and one batch of work
(two where the engine is asked ahead, as vLLM). The batch is the engine's unit, because what is
sampled or scored together is ready together; where one takes longer than flush_seconds, each is
appended as it comes, and smaller ones (`rollout.prompts_per_batch`) lose less.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opd_core.types import QuarantinedItem

if TYPE_CHECKING:
    from opd_core.types import Batch
    from storage.runs.run import Run


class Rows:
    """Collected rows of one stage of one round; `added` and `quarantined` count what was new."""

    def __init__(
        self, run: Run, table: str, stage: str, policy_version: int, flush_seconds: float
    ) -> None:
        self.added = self.quarantined = 0
        self._run, self._table, self._stage = run, table, stage
        self._policy_version = policy_version
        self._flush_seconds = flush_seconds
        self._records: list[Any] = []
        self._faults: list[QuarantinedItem] = []
        self._last = time.monotonic()
        self._refused = False

    def add(self, batch: Batch[Any]) -> None:
        """Take a batch; append all that is collected when it is time."""
        self._records += batch.records
        self._faults += batch.quarantined
        if time.monotonic() - self._last >= self._flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Append what is collected. Rows that an interrupted flush has appended stay one row."""
        run, version = self._run, self._policy_version
        try:
            self.added += run.append(
                self._table, self._records, stage=self._stage, policy_version=version
            )
            self._records = []
            self.quarantined += run.append(
                "quarantine", self._faults, stage=self._stage, policy_version=version
            )
            self._faults = []
        except Exception:
            self._refused = True
            raise
        self._last = time.monotonic()

    def close(self) -> None:
        """Append the rest, unless the tables refused it already."""
        if not self._refused:
            self.flush()


@contextmanager
def appending(
    run: Run, table: str, stage: str, policy_version: int, flush_seconds: float
) -> Iterator[Rows]:
    """Rows of a stage, all of them in the tables when the block is left, however it is left."""
    rows = Rows(run, table, stage, policy_version, flush_seconds)
    try:
        yield rows
    except BaseException as error:
        try:
            rows.close()
        except Exception as second:
            error.add_note(f"what the stage had computed could not be appended: {second}")
        raise
    rows.close()
