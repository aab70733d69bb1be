"""The data format: every table, and what its rows have to keep to.

One table a record of `opd_core/types.py`, one column a field (`storage/tables/columns.py`). The
store adds PROVENANCE to every row. Changing a record changes what is on people's disks: raise
SCHEMA_VERSION (a test pins the format of each version). A new optional column needs nothing else:
runs without it still open, and `videoopd migrate` adds it.

Absent is null, never 0.0. Times are seconds of the video, log-probabilities natural logarithms.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from opd_core import types
from storage.tables.columns import Column, columns_of

SCHEMA_VERSION = 3


@dataclass(frozen=True)
class TableSpec:
    name: str
    record: type
    writer: str | None
    """The one stage that appends to it; None: every stage may."""
    key: tuple[str, ...]
    """A row with the same key and take is the same row; appending it again does nothing."""
    same_length: tuple[tuple[str, ...], ...] = ()
    """Lists that run in parallel, such as tokens and their log-probs."""
    finite: tuple[str, ...] = ()
    """Columns in which infinity is refused too (NaN is refused in all)."""
    null_only_where: tuple[tuple[str, str, str], ...] = ()
    """(column, other, value): the column may be null only where the other column has the value."""
    round_column: str | None = "policy_version"
    """Names the round of a row; None: its rows are of no round, and no stage supersedes them."""

    @property
    def description(self) -> str:
        """The first sentence of the record's docstring."""
        return inspect.cleandoc(self.record.__doc__ or "").split("\n\n")[0].replace("\n", " ")

    @property
    def own_columns(self) -> tuple[Column, ...]:
        return columns_of(self.record)

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.own_columns + PROVENANCE

    @cached_property
    def schema(self) -> pa.Schema:
        metadata = {"description": self.description, "schema_version": str(SCHEMA_VERSION)}
        return pa.schema([column.field for column in self.columns], metadata=metadata)


PROVENANCE = (
    Column("run_id", pa.string(), "The run that wrote the row (run.json)."),
    Column("config_hash", pa.string(), "Config in force: configs/<config_hash>.json of the run."),
    Column("git_commit", pa.string(), "Commit of this program; null: no checkout.", optional=True),
    Column("attempt", pa.string(), "Id of the stage execution that wrote the row."),
    Column("written_at", pa.timestamp("us", tz="UTC"), "When the row was appended (UTC)."),
    Column("take", pa.int64(), "0, or the take of `reruns` that its stage was in."),
)

RETIRED: dict[str, tuple[str, ...]] = dict.fromkeys(
    ("evaluations", "model_evaluations"), ("iou_rounded",)
)
"""Columns that older formats had. They stay in the versions of their day, and are not read."""


def _by_name(specs: Iterable[TableSpec]) -> dict[str, TableSpec]:
    return {spec.name: spec for spec in specs}


TABLES: dict[str, TableSpec] = _by_name(
    [
        TableSpec(
            "examples",
            types.GroundingExample,
            writer="import",
            key=("example_id",),
            round_column=None,
        ),
        TableSpec(
            "quarantine",
            types.QuarantinedItem,
            writer=None,
            key=("item_id", "stage", "policy_version"),
        ),
        TableSpec(
            "data_changes",
            types.DataChange,
            writer="import",
            key=("sequence", "item_id"),
            round_column=None,
        ),
        TableSpec(
            "draws",
            types.Draw,
            writer="draw",
            key=("policy_version", "example_id"),
        ),
        TableSpec(
            "teacher_predictions",
            types.TeacherPrediction,
            writer="validate",
            key=("example_id", "teacher_hash", "question_hash", "prediction_index"),
            round_column=None,
        ),
        TableSpec(
            "rollouts",
            types.Rollout,
            writer="rollout",
            key=("rollout_id",),
            same_length=(
                ("completion_token_ids", "sampling_logprobs"),
                ("frame_indices", "frame_timestamps"),
            ),
            finite=("sampling_logprobs", "frame_timestamps"),
            null_only_where=(("sampling_logprobs", "answered_by", "truth"),),
        ),
        TableSpec(
            "teacher_scores",
            types.TeacherScore,
            writer="score",
            key=("rollout_id", "teacher_hash"),
            same_length=(
                ("teacher_logprobs", "topk_token_ids", "topk_logprobs", "tail_logprobs"),
                ("teacher_logprobs", "teacher_entropies", "hidden_states"),
            ),
            finite=("teacher_logprobs", "teacher_entropies", "hidden_states"),
        ),
        TableSpec(
            "divergences",
            types.Divergence,
            writer="rescore",
            key=("rollout_id", "teacher_hash"),
            same_length=(("forward_kl", "reverse_kl", "js"),),
            finite=("forward_kl", "reverse_kl", "js"),
        ),
        TableSpec(
            "selections",
            types.Selection,
            writer="focus",
            key=("policy_version", "rollout_id"),
        ),
        TableSpec(
            "trained_rollouts",
            types.TrainedRollout,
            writer="update",
            key=("rollout_id",),
            finite=("student_logprobs",),
        ),
        TableSpec(
            "updates",
            types.Update,
            writer="update",
            key=("policy_version",),
            round_column="parent_version",
        ),
        TableSpec(
            "evaluations",
            types.Evaluation,
            writer="evaluate",
            key=("policy_version", "example_id"),
        ),
        TableSpec(
            "model_evaluations",
            types.ModelEvaluation,
            writer="evaluate model",
            key=("model_hash", "question_hash", "example_id"),
            round_column=None,
        ),
        TableSpec(
            "reruns",
            types.Rerun,
            writer=None,
            key=("policy_version", "stage", "new_take"),
            round_column=None,
        ),
    ]
)
