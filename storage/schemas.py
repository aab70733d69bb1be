"""The data format: every table and every column, with its meaning, in one place.

One table a record of `opd_core/types.py`, one column a field; a test holds the two together. A span
becomes two flat columns (`span_start`, `span_end`), because that is what SQL asks for. The store
adds PROVENANCE to every row. Changing anything here changes what is on people's disks: raise
SCHEMA_VERSION (a test pins the format of each version).

Absent is null, never 0.0. Times are seconds of the video, log-probabilities natural logarithms;
float32 holds them without loss, since the forward passes compute their softmax in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from opd_core import types

SCHEMA_VERSION = 3

STRING, BOOL, INT, FLOAT = pa.string(), pa.bool_(), pa.int64(), pa.float64()
TOKENS, LOGPROBS = pa.list_(pa.int32()), pa.list_(pa.float32())
TIME = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: pa.DataType
    description: str
    optional: bool = False
    """Null means absent. Every other column refuses nulls."""

    @property
    def field(self) -> pa.Field:
        metadata = {"description": self.description}
        return pa.field(self.name, self.type, nullable=self.optional, metadata=metadata)


@dataclass(frozen=True)
class TableSpec:
    name: str
    record: type
    writer: str | None
    """The one stage that appends to it; None: every stage may."""
    key: tuple[str, ...]
    """A row with the same key and take is the same row; appending it again does nothing."""
    description: str
    own_columns: tuple[Column, ...]
    same_length: tuple[tuple[str, ...], ...] = ()
    """Lists that run in parallel, such as tokens and their log-probs."""
    finite: tuple[str, ...] = ()
    """Columns in which infinity is refused too (NaN is refused in all)."""
    null_only_where: tuple[tuple[str, str, str], ...] = ()
    """(column, other, value): the column may be null only where the other column has the value."""
    round_column: str | None = "policy_version"
    """Names the round of a row; None: its rows are of no round, and no stage supersedes them."""

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.own_columns + PROVENANCE

    @cached_property
    def schema(self) -> pa.Schema:
        metadata = {"description": self.description, "schema_version": str(SCHEMA_VERSION)}
        return pa.schema([column.field for column in self.columns], metadata=metadata)


PROVENANCE = (
    Column("run_id", STRING, "The run that wrote the row (run.json)."),
    Column("config_hash", STRING, "Config in force: configs/<config_hash>.json of the run."),
    Column("git_commit", STRING, "Commit of this program; null outside a checkout.", optional=True),
    Column("attempt", STRING, "Id of the stage execution that wrote the row."),
    Column("written_at", TIME, "When the row was appended (UTC)."),
    Column("take", INT, "0, or the take of `reruns` that its stage was in (storage/takes.py)."),
)

STEP = pa.struct(
    [
        Column("step", INT, "0, 1, ... within the update.").field,
        Column("loss", FLOAT, "Objective, over the step's trained tokens.").field,
        Column("learning_rate", FLOAT, "As applied.").field,
        Column("grad_norm", FLOAT, "Before clipping.").field,
        Column("tokens", INT, "Trained tokens.").field,
        Column("rollouts", INT, "Trained rollouts.").field,
        Column(
            "reverse_kl", FLOAT, "Mean of student - teacher log-prob, nats.", optional=True
        ).field,
        Column("policy_kl", FLOAT, "KL to the starting policy (k3), nats.", optional=True).field,
        Column("ratio_min", FLOAT, "Smallest pi / pi_v of a token.", optional=True).field,
        Column("ratio_max", FLOAT, "Largest pi / pi_v of a token.", optional=True).field,
        Column(
            "effective_sample_size",
            FLOAT,
            "(sum w)^2 / (n sum w^2) of tokens in the loss.",
            optional=True,
        ).field,
        Column("tis_weight_mean", FLOAT, "Mean truncated importance weight.", optional=True).field,
        Column("tis_truncated", FLOAT, "Share of tokens cut off at the cap.", optional=True).field,
        Column("seconds", FLOAT, "Wall-clock of the step.").field,
    ]
)

_POLICY_VERSION = Column("policy_version", INT, "Version of the student's weights; 0 = base.")
_POLICY_HASH = Column("policy_hash", STRING, "Hash of the policy's weights.")
_EXAMPLE_ID = Column("example_id", STRING, "The example; joins `examples`.")
_ROLLOUT_ID = Column("rollout_id", STRING, "The rollout: v<policy_version>-<example_id>-<sample>.")
_TEACHER_ID = Column("teacher_id", STRING, "Name of the teacher.")
_TEACHER_HASH = Column("teacher_hash", STRING, "Hash of the teacher's weights.")
_QUESTION_HASH = Column(
    "question_hash", STRING, "Hash of how it was asked: template, frames, engine, ..."
)
_TEXT = Column("text", STRING, "The answer, decoded.")
_SEED = Column("seed", INT, "Seed it was sampled with.")
_COMPLETION = Column("completion_token_ids", TOKENS, "[T] The answer's tokens, end included.")
_FINISH = Column("finish_reason", STRING, "`stop` (end token) or `length`.")
_ENGINE = Column("engine", STRING, "What sampled it.")
_PREDICTED = (
    Column("predicted_start", FLOAT, "Start of the answered span, s; null: none.", optional=True),
    Column("predicted_end", FLOAT, "End of the answered span, s; null: none.", optional=True),
)


def _seconds(of: str) -> Column:
    return Column("seconds", FLOAT, f"Wall-clock of {of}.")


_GREEDY_ANSWER = (
    _TEXT,
    _COMPLETION,
    _FINISH,
    *_PREDICTED,
    Column("iou", FLOAT, "Unrounded IoU (`strict`, `qvhighlights`); no span counts 0."),
    Column(
        "timelens_start",
        FLOAT,
        "Start that TimeLens' evaluation reads in the text, s, not rounded; null: none.",
        optional=True,
    ),
    Column("timelens_end", FLOAT, "End that it reads, s; null: none.", optional=True),
    Column(
        "timelens_iou",
        FLOAT,
        "IoU by protocol `timelens`; no span counts 0; null: written before it was kept.",
        optional=True,
    ),
    _ENGINE,
    _seconds("this answer's share of its batch"),
)


def _by_name(specs: Iterable[TableSpec]) -> dict[str, TableSpec]:
    return {spec.name: spec for spec in specs}


TABLES: dict[str, TableSpec] = _by_name(
    [
        TableSpec(
            "examples",
            types.GroundingExample,
            writer="import",
            key=("example_id",),
            description="One video, one sentence, its true span or spans, as first read.",
            round_column=None,
            own_columns=(
                Column("example_id", STRING, "Hash of video path, sentence and spans."),
                Column("video_path", STRING, "As annotated, relative to the videos folder."),
                Column("duration", FLOAT, "Length of the video as annotated, s."),
                Column("query", STRING, "The sentence to ground."),
                Column("span_start", FLOAT, "True start of the first span, s."),
                Column("span_end", FLOAT, "True end of the first span, s."),
                Column("source", STRING, "Data set the annotation came from."),
                Column("split", STRING, "`train` or `eval`."),
                Column(
                    "other_spans",
                    pa.list_(pa.list_(FLOAT)),
                    "[start, end] of the other times at which it is true, s; mostly empty.",
                ),
            ),
        ),
        TableSpec(
            "quarantine",
            types.QuarantinedItem,
            writer=None,
            key=("item_id", "stage", "policy_version"),
            description="What could not be used, with the reason.",
            own_columns=(
                Column("item_id", STRING, "Example id, or file:line of an annotation."),
                Column("stage", STRING, "Stage that gave it up."),
                Column("video_path", STRING, "Its video, when it has one.", optional=True),
                Column("reason", STRING, "Why, in a sentence."),
                Column("policy_version", INT, "Round; null: found in none.", optional=True),
                Column(
                    "kind",
                    STRING,
                    "What is at fault: `no file` and `decoder lost` are tried again in later"
                    " rounds. Null: rows of older programs.",
                    optional=True,
                ),
            ),
        ),
        TableSpec(
            "data_changes",
            types.DataChange,
            writer="import",
            key=("sequence", "item_id"),
            description="What became of annotations since the run first read them.",
            round_column=None,
            own_columns=(
                Column("sequence", INT, "1, 2, ...: one number a reading that found changes."),
                Column("item_id", STRING, "Example id, or place of one that makes no example."),
                Column(
                    "change",
                    STRING,
                    "`added`, `removed`, `returned`, `moved` or `corrected`.",
                ),
                Column("split", STRING, "Where it is from now on; null: in none.", optional=True),
                Column("duration", FLOAT, "As annotated from now on, s.", optional=True),
                Column("source", STRING, "As annotated from now on.", optional=True),
                Column("newest_policy", INT, "Newest committed policy when it was found."),
            ),
        ),
        TableSpec(
            "draws",
            types.Draw,
            writer="draw",
            key=("policy_version", "example_id"),
            description="Examples drawn for a round, so that a resumed round works on the same.",
            own_columns=(
                _POLICY_VERSION,
                _EXAMPLE_ID,
                Column("position", INT, "Order of work: 0, 1, ...; one video's are neighbours."),
            ),
        ),
        TableSpec(
            "teacher_predictions",
            types.TeacherPrediction,
            writer="validate",
            key=("example_id", "teacher_hash", "question_hash", "prediction_index"),
            description="The teacher's own answers to an example (TRPV).",
            round_column=None,
            own_columns=(
                _EXAMPLE_ID,
                Column("prediction_index", INT, "0 ... k-1."),
                _TEACHER_ID,
                _TEACHER_HASH,
                _QUESTION_HASH,
                _TEXT,
                *_PREDICTED,
                Column("iou", FLOAT, "Temporal IoU with the truth; no span counts 0."),
                _SEED,
                Column("pixel_hash", STRING, "Hash of the resized uint8 frames it saw."),
                Column(
                    "reused_from",
                    STRING,
                    "run_id of the run that asked, of a copied answer; null: asked here.",
                    optional=True,
                ),
            ),
        ),
        TableSpec(
            "rollouts",
            types.Rollout,
            writer="rollout",
            key=("rollout_id",),
            description="Sampled answers of the student, with all that is needed to redo them.",
            own_columns=(
                _ROLLOUT_ID,
                _POLICY_VERSION,
                Column("policy_hash", STRING, "Hash of the weights that sampled it, or `truth`."),
                Column("answered_by", STRING, "`student`; `teacher` or `truth` for baselines."),
                _EXAMPLE_ID,
                Column("sample_index", INT, "0 ... rollouts per example - 1."),
                _SEED,
                Column("prompt_token_ids", TOKENS, "The prompt's tokens, video pads included."),
                _COMPLETION,
                Column(
                    "sampling_logprobs",
                    LOGPROBS,
                    "[T] log pi_v, recorded while sampling; null where `truth` answered.",
                    optional=True,
                ),
                _FINISH,
                _TEXT,
                *_PREDICTED,
                Column("student_iou", FLOAT, "Temporal IoU with the truth; no span counts 0."),
                Column("frame_indices", TOKENS, "[F] Which frames of the file were seen."),
                Column("frame_timestamps", pa.list_(FLOAT), "[F] When each is shown, s."),
                Column("grid_thw", TOKENS, "[3] Vision patches: time, height, width, unmerged."),
                Column("pixel_hash", STRING, "Hash of the resized uint8 frames."),
                Column("processor_hash", STRING, "Hash of tokenizer, template and processors."),
                _ENGINE,
                Column("engine_version", STRING, "Its version."),
                Column(
                    "engine_mismatch",
                    FLOAT,
                    "Largest |trainer - sampling| log-prob, of the stage's probe; null elsewhere.",
                    optional=True,
                ),
                _seconds("this rollout's share of its batch"),
                Column(
                    "second_per_grid",
                    FLOAT,
                    "Seconds between vision tokens; null where times are in the prompt.",
                    optional=True,
                ),
            ),
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
            description="The teacher's log-probabilities of the rollouts' tokens.",
            own_columns=(
                _ROLLOUT_ID,
                _POLICY_VERSION,
                _TEACHER_ID,
                _TEACHER_HASH,
                Column("teacher_logprobs", LOGPROBS, "[T] log q of each sampled token."),
                Column(
                    "topk_token_ids",
                    pa.list_(TOKENS),
                    "[T, K] The teacher's K likeliest tokens at each position.",
                    optional=True,
                ),
                Column(
                    "topk_logprobs",
                    pa.list_(LOGPROBS),
                    "[T, K] Their log-probs, not renormalised: the rest is the tail.",
                    optional=True,
                ),
                Column(
                    "tail_logprobs",
                    LOGPROBS,
                    "[T] Log of the probability of all other tokens together.",
                    optional=True,
                ),
                Column(
                    "teacher_entropies",
                    LOGPROBS,
                    "[T] Entropy of q at each position, nats (score.teacher_entropy).",
                    optional=True,
                ),
                Column(
                    "hidden_states",
                    pa.list_(LOGPROBS),
                    "[T, D] The teacher's last hidden states that predict the tokens, after its"
                    " final norm; float32 holds a bfloat16 exactly (score.hidden_states).",
                    optional=True,
                ),
                Column("scorer", STRING, "What computed it: engine, precision, what was kept."),
                Column("content_hash", STRING, "Hash of all that determines these numbers."),
                Column(
                    "reused_from",
                    STRING,
                    "run_id/rollout_id of the row these numbers were copied from; null: computed.",
                    optional=True,
                ),
                Column("seconds", FLOAT, "Its share of its batch's wall-clock; 0 for a copy."),
            ),
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
            description="Exact divergences of policy and teacher, by `videoopd rescore`.",
            own_columns=(
                _ROLLOUT_ID,
                _POLICY_VERSION,
                _TEACHER_HASH,
                Column("forward_kl", LOGPROBS, "[T] KL(q || pi_v), whole vocabulary, nats."),
                Column("reverse_kl", LOGPROBS, "[T] KL(pi_v || q), whole vocabulary, nats."),
                Column("js", LOGPROBS, "[T] Jensen-Shannon divergence, nats, at most log 2."),
                Column(
                    "max_teacher_mismatch",
                    FLOAT,
                    "Largest |log-prob from hidden states - teacher_logprobs| of a token.",
                ),
                Column(
                    "max_student_mismatch",
                    FLOAT,
                    "Largest |this forward's - sampling| log-prob of a token.",
                ),
                _seconds("this rollout's share of its batch"),
            ),
            same_length=(("forward_kl", "reverse_kl", "js"),),
            finite=("forward_kl", "reverse_kl", "js"),
        ),
        TableSpec(
            "selections",
            types.Selection,
            writer="focus",
            key=("policy_version", "rollout_id"),
            description="Whether focus took a rollout, by which curriculum, on which numbers.",
            own_columns=(
                _ROLLOUT_ID,
                _POLICY_VERSION,
                _EXAMPLE_ID,
                Column("curriculum", STRING, "`tvdf`, `scc`, `timelens` or `uniform`."),
                Column("selected", BOOL, "Whether the update trains on it."),
                Column("reason", STRING, "`selected`, or why not."),
                Column("teacher_iou", FLOAT, "Mean IoU of the teacher's answers.", optional=True),
                Column("student_iou", FLOAT, "IoU of the unit's rollouts.", optional=True),
                Column("disagreement", FLOAT, "teacher_iou - student_iou.", optional=True),
                Column(
                    "reverse_kl",
                    FLOAT,
                    "Mean of sampling - teacher log-probs of the unit, nats a token, where the"
                    " ranking is by it.",
                    optional=True,
                ),
                Column("rank", INT, "0 = largest disagreement, or first drawn.", optional=True),
                Column("pool", STRING, "Part of the ranking it was in.", optional=True),
                Column("weight", FLOAT, "Its weight in a weighted draw.", optional=True),
                Column("settings", STRING, "The config's [focus], as JSON."),
                Column("seed", INT, "Seed of what the curriculum draws."),
                Column(
                    "question_hash",
                    STRING,
                    "Of the teacher's answers that were read; null: none are needed.",
                    optional=True,
                ),
                Column("rollouts_version", INT, "Version of `rollouts` that was read."),
                Column("predictions_version", INT, "The same of `teacher_predictions`."),
                Column("scores_version", INT, "The same of `teacher_scores`."),
            ),
        ),
        TableSpec(
            "trained_rollouts",
            types.TrainedRollout,
            writer="update",
            key=("rollout_id",),
            description="Each rollout as the update first met it: the trainer's own log-probs.",
            own_columns=(
                _ROLLOUT_ID,
                _POLICY_VERSION,
                Column("step", INT, "Optimiser step it was first part of; at 0 none had moved."),
                Column("student_logprobs", LOGPROBS, "[T] log pi of each sampled token then."),
            ),
            finite=("student_logprobs",),
        ),
        TableSpec(
            "updates",
            types.Update,
            writer="update",
            key=("policy_version",),
            description="Committed rounds: the row, written last, makes the new policy real.",
            round_column="parent_version",
            own_columns=(
                Column("policy_version", INT, "Of the new policy."),
                Column("policy_hash", STRING, "Hash of the new policy's weights."),
                Column("parent_version", INT, "The policy that was trained."),
                Column("parent_hash", STRING, "Hash of its weights."),
                Column("checkpoint", STRING, "Folder of the new policy, relative to the run."),
                Column("objective", STRING, "Its name, or those of a weighted sum."),
                Column("uses_scores", BOOL, "Whether it needs the teacher's scores."),
                _TEACHER_HASH,
                Column("rollouts", INT, "Rollouts trained on."),
                Column("tokens", INT, "Completion tokens trained on."),
                Column(
                    "max_logprob_mismatch",
                    FLOAT,
                    "Largest |student - sampling| log-prob before any weight moved.",
                    optional=True,
                ),
                Column("stopped_early", STRING, "Why it ended early.", optional=True),
                Column(
                    "optimizer_restarted",
                    STRING,
                    "Why the optimiser began anew; null: it went on, or the round is the first.",
                    optional=True,
                ),
                Column("teacher_passes_saved", INT, "Rollouts that never had to be scored."),
                Column("steps", pa.list_(STEP), "One entry an optimiser step."),
                _seconds("the update"),
                Column("mean_logprob_mismatch", FLOAT, "Mean of the same tokens.", optional=True),
                Column(
                    "logprob_bound",
                    FLOAT,
                    "Nats that max_logprob_mismatch was held against.",
                    optional=True,
                ),
                Column(
                    "mean_logprob_bound",
                    FLOAT,
                    "Those of the mean; null where it was not bounded.",
                    optional=True,
                ),
            ),
        ),
        TableSpec(
            "evaluations",
            types.Evaluation,
            writer="evaluate",
            key=("policy_version", "example_id"),
            description="One greedy answer of one policy to one example of the eval split.",
            own_columns=(
                _POLICY_VERSION,
                _POLICY_HASH,
                _EXAMPLE_ID,
                *_GREEDY_ANSWER,
            ),
        ),
        TableSpec(
            "model_evaluations",
            types.ModelEvaluation,
            writer="evaluate model",
            key=("model_hash", "question_hash", "example_id"),
            description="One greedy answer of any model's folder to one example of the eval split.",
            round_column=None,
            own_columns=(
                Column("model_hash", STRING, "Hash of the model's weights."),
                _QUESTION_HASH,
                Column("model_id", STRING, "Name of the model's folder."),
                _EXAMPLE_ID,
                *_GREEDY_ANSWER,
            ),
        ),
        TableSpec(
            "reruns",
            types.Rerun,
            writer=None,
            key=("policy_version", "stage", "new_take"),
            description="Stages that were run again, and what that superseded.",
            round_column=None,
            own_columns=(
                Column("sequence", INT, "1, 2, ... in the order in which they began."),
                Column("policy_version", INT, "Round; for `evaluate` the policy that answers."),
                Column("stage", STRING, "What was run again."),
                Column("new_take", INT, "1, 2, ...: the rows it wrote from then on have it."),
                Column("because", STRING, "`forced`, or what had become of its inputs."),
                Column("superseded", INT, "Rows of the take before; they stay."),
                Column("stale", pa.list_(STRING), "Later stages with rows: stale until rerun."),
            ),
        ),
    ]
)


def span_columns(field_name: str) -> tuple[str, str]:
    """The two columns of a span: `span` -> span_start, span_end; `predicted_span` -> predicted_*.

    >>> span_columns("predicted_span")
    ('predicted_start', 'predicted_end')
    """
    prefix = field_name.removesuffix("_span")
    return f"{prefix}_start", f"{prefix}_end"
