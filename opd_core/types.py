"""The contract between stages: one frozen record a table row, and nothing that is slow to import.

Every stage reads records, computes, and appends records. `storage/schemas.py` gives each field a
column and a description; a test holds the two together. Absent is `None`, never 0.0.
Times are seconds from the start of the video. Log-probabilities are natural logarithms.

The three log-probabilities of a sampled token, which must never be mixed up:

    sampling_logprobs   recorded by the engine while it sampled          (policy v)
    student_logprobs    recomputed by the trainer's own forward          (policy v, first step)
    teacher_logprobs    one forward of the frozen teacher

All three are log-softmaxes over the same distribution: the vocabulary without the vision
placeholders (see `opd_core/vocabulary.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class VideoOPDError(Exception):
    """An error a user can cause. Its text is one sentence that names the thing and the fix."""


class Span(NamedTuple):
    """A moment of a video: `start < end`, both in seconds."""

    start: float
    end: float


@dataclass(frozen=True, slots=True)
class GroundingExample:
    """One video, one sentence, and when it is true: once, or (QVHighlights) several times."""

    example_id: str
    """`make_example_id(video_path, query, *spans)`: the same annotation has one id anywhere."""
    video_path: str
    """As in the annotation file, relative to the `videos` folder of the config."""
    duration: float
    """Seconds, as annotated."""
    query: str
    span: Span
    """The first span of truth: what one answer is trained towards where a loss needs one."""
    source: str
    split: str
    """`train` or `eval`."""
    other_spans: Sequence[Sequence[float]] = ()
    """[[start, end], ...] of the other times at which the sentence is true, as annotated. An
    answer counts by the span it fits best."""

    @property
    def spans(self) -> tuple[Span, ...]:
        return (self.span, *(Span(*other) for other in self.other_spans))


@dataclass(frozen=True, slots=True)
class QuarantinedItem:
    """Something that could not be used, with the reason; the rest of the run went on without it."""

    item_id: str
    """example id, or `file:line` of an annotation that made no example."""
    stage: str
    video_path: str | None
    reason: str
    policy_version: int | None
    """None for what was found in no round: while importing, or evaluating another model."""
    kind: str | None = None
    """What is at fault (`opd_core/faults.py`): it decides whether later rounds try it again."""


@dataclass(frozen=True, slots=True)
class DataChange:
    """What became of an annotation since the run first read it. `examples` keeps it as it was."""

    sequence: int
    """1, 2, ... in a run; the changes that were found in one reading have one number."""
    item_id: str
    """As in `quarantine`: an example id, or the place of an annotation that makes no example."""
    change: str
    """`added` (after the run began), `removed`, `returned`, `moved` (to the other split) or
    `corrected` (another duration or source; another sentence or span is another example)."""
    split: str | None
    """`train` or `eval` from now on; None where no annotation file holds it any more."""
    duration: float | None
    """Seconds, as annotated now."""
    source: str | None
    newest_policy: int
    """The newest committed policy when that was found; rounds that sample from it go by it."""


@dataclass(frozen=True, slots=True)
class Draw:
    """An example drawn for a round. Kept, so that a resumed round works on the same examples."""

    policy_version: int
    example_id: str
    position: int
    """Order of work in the round: 0, 1, ... Sentences of one video are neighbours."""


@dataclass(frozen=True, slots=True)
class TeacherPrediction:
    """One of the teacher's own k answers to an example (TRPV); made once, kept for ever."""

    example_id: str
    prediction_index: int
    teacher_id: str
    teacher_hash: str
    question_hash: str
    """`question_key.prediction_question`: how it was asked; answers of one hash are comparable."""
    text: str
    predicted_span: Span | None
    iou: float
    """Temporal IoU with the truth; an answer without a span counts 0 (a rule, not a default)."""
    seed: int
    pixel_hash: str
    """Hash of the resized uint8 frames that it saw."""
    reused_from: str | None
    """`run_id` of the run that asked, where this row is a copy of its answer."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled answer of one policy to one example, with all that is needed to redo it."""

    rollout_id: str
    """`make_rollout_id(policy_version, example_id, sample_index)`."""
    policy_version: int
    policy_hash: str
    """Hash of the weights that sampled it; `truth` where nothing did."""
    answered_by: str
    """`student`; `teacher` or `truth` where a baseline trains on answers of another's."""
    example_id: str
    sample_index: int
    seed: int
    prompt_token_ids: Sequence[int]
    completion_token_ids: Sequence[int]
    """[T] what was sampled, the end token included when there is one."""
    sampling_logprobs: Sequence[float] | None
    """[T] log-prob of each token under the weights that sampled it (log pi_v), recorded while
    sampling; None where nothing sampled (`truth`)."""
    finish_reason: str
    """`stop` (end token) or `length`."""
    text: str
    predicted_span: Span | None
    student_iou: float
    """Temporal IoU with the truth; an answer without a span counts 0."""
    frame_indices: Sequence[int]
    """[F] which frames of the file were seen."""
    frame_timestamps: Sequence[float]
    """[F] seconds, of the same frames."""
    grid_thw: Sequence[int]
    """[3] vision patches: time, height, width (before merging)."""
    pixel_hash: str
    """Hash of the resized uint8 frames."""
    processor_hash: str
    engine: str
    engine_version: str
    engine_mismatch: float | None
    """Largest |trainer's - sampling| log-prob of a token, where the rollout was its stage's probe;
    None elsewhere."""
    seconds: float
    """This rollout's share of its batch's wall-clock."""
    second_per_grid: float | None = None
    """Seconds between vision tokens in time, where the model's positions count them (Qwen2.5-VL);
    None where times are in the prompt."""


@dataclass(frozen=True, slots=True)
class TeacherScore:
    """The teacher's log-probabilities of one rollout's tokens; the teacher generated nothing."""

    rollout_id: str
    policy_version: int
    teacher_id: str
    teacher_hash: str
    teacher_logprobs: Sequence[float]
    """[T] log q of each sampled token."""
    topk_token_ids: Sequence[Sequence[int]] | None
    """[T, K] the teacher's K likeliest tokens at each position."""
    topk_logprobs: Sequence[Sequence[float]] | None
    """[T, K] their log-probs under the full vocabulary (not renormalised: the rest is the tail)."""
    tail_logprobs: Sequence[float] | None
    """[T] log of the probability of all other tokens together; kept, because 1 - sum cancels."""
    teacher_entropies: Sequence[float] | None
    """[T] entropy of q at each position, nats, over the tokens that may be sampled."""
    hidden_states: Sequence[Sequence[float]] | None
    """[T, D] the teacher's last hidden states (after the final norm) at the rows that predict the
    tokens: with its lm_head, q over the whole vocabulary."""
    scorer: str
    """What computed it, in words (`scoring.describe_scorer`): engine, precision, what was kept."""
    content_hash: str
    """`score_key.content_hash`: two scores of one hash are the same numbers."""
    reused_from: str | None
    """`run_id/rollout_id` of the row that was computed, where this one is a copy of its numbers."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far apart policy and teacher are at each token of a rollout, over the whole vocabulary.

    Exact, from both full distributions; nats, never negative.
    """

    rollout_id: str
    policy_version: int
    teacher_hash: str
    forward_kl: Sequence[float]
    """[T] KL(q || pi_v)."""
    reverse_kl: Sequence[float]
    """[T] KL(pi_v || q)."""
    js: Sequence[float]
    """[T] Jensen-Shannon divergence, at most log 2."""
    max_teacher_mismatch: float
    """Largest |log-prob from the stored hidden states - teacher_logprobs| of the rollout's tokens:
    whether the lm_head is the one of the teacher that scored."""
    max_student_mismatch: float
    """Largest |this forward's - sampling| log-prob of the rollout's tokens."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Selection:
    """Whether focus took a rollout, by which curriculum, and the numbers it decided on."""

    rollout_id: str
    policy_version: int
    example_id: str
    curriculum: str
    selected: bool
    reason: str
    """`selected`, `teacher unreliable`, `teacher unknown`, `disagreement outside top k`, ..."""
    teacher_iou: float | None
    student_iou: float | None
    disagreement: float | None
    """teacher_iou - student_iou."""
    reverse_kl: float | None
    """Mean of sampling - teacher log-probs of the unit, nats, where the ranking is by it."""
    rank: int | None
    """Place in the curriculum's order (or its pool's): 0 = largest disagreement, or first drawn."""
    pool: str | None
    """Part of the ranking it was in: `frontier`, `anchor` (scc), `bucket 0` ... (buckets)."""
    weight: float | None
    """Of a weighted draw: proportional to the probability of being drawn first."""
    settings: str
    """The config's [focus], as JSON."""
    seed: int
    """Of what the curriculum draws."""
    question_hash: str | None
    """Of the teacher's answers that were read; None where the curriculum needs none."""
    rollouts_version: int
    """Version of the table that was read; so are the next two."""
    predictions_version: int
    scores_version: int


@dataclass(frozen=True, slots=True)
class UpdateStep:
    """One optimiser step, all numbers over the step's trained tokens."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    rollouts: int
    reverse_kl: float | None
    """Mean over tokens of log pi - log q of the sampled tokens (k1 estimate of KL(pi || q)); None
    without the teacher's scores, or on answers that the policy has not sampled. So are the next
    four, which compare with the policy that sampled."""
    policy_kl: float | None
    """KL(pi_v || pi) to the policy that the update began with: mean over tokens of ratio - 1 - log
    ratio (k3), ratio = pi / pi_v. pi_v is the trainer's own where another engine sampled and the
    loss needs it (`opd_core/importance.py`), else as it was sampled."""
    ratio_min: float | None
    """Smallest pi / pi_v of a token."""
    ratio_max: float | None
    effective_sample_size: float | None
    """(sum w)^2 / (n * sum w^2) of what a token counts by in the loss: its importance weight, times
    pi / pi_v in the objectives that have the ratio. 1: all count alike."""
    tis_weight_mean: float | None
    """Mean truncated importance weight of a token, as the objective used it (of a weighted sum the
    mean of its parts by their shares); None where no such weights were used."""
    tis_truncated: float | None
    """Share of tokens whose weight was cut off at update.tis_cap."""
    seconds: float


@dataclass(frozen=True, slots=True)
class TrainedRollout:
    """A rollout as the update first met it: the third of its log-probs."""

    rollout_id: str
    policy_version: int
    """Of the policy that sampled it; its update makes `policy_version` + 1."""
    step: int
    """The optimiser step it was first part of; at step 0 no weight had moved."""
    student_logprobs: Sequence[float]
    """[T] log pi of each sampled token in that step's forward pass."""


@dataclass(frozen=True, slots=True)
class Update:
    """A committed round: policy `policy_version - 1` became `policy_version`. Written last."""

    policy_version: int
    """Of the new policy."""
    policy_hash: str
    parent_version: int
    parent_hash: str
    checkpoint: str
    """Folder, relative to the run."""
    objective: str
    uses_scores: bool
    """Whether the objective needs the teacher's scores of the rollouts."""
    teacher_hash: str
    rollouts: int
    """Rollouts trained on."""
    tokens: int
    """Completion tokens trained on."""
    max_logprob_mismatch: float | None
    """Largest |student - sampling| log-prob on the first step, before any weight moved; None on
    answers that the policy has not sampled."""
    stopped_early: str | None
    """Why the update ended before its last step, or None."""
    optimizer_restarted: str | None
    """Why the optimiser began anew, its moments and warm-up lost; None where it went on from the
    round before, and in the first round."""
    teacher_passes_saved: int
    """Rollouts that focus could no longer select and that were therefore never scored."""
    steps: Sequence[UpdateStep]
    seconds: float
    mean_logprob_mismatch: float | None = None
    """Mean of the same tokens; None where `max_logprob_mismatch` is."""
    logprob_bound: float | None = None
    """Nats that `max_logprob_mismatch` was held against (`agreement.py`);"""
    mean_logprob_bound: float | None = None
    """and those of the mean, None where it was not bounded."""


@dataclass(frozen=True, slots=True)
class Rerun:
    """A stage of a round began again: what it had written before is superseded."""

    sequence: int
    """1, 2, ... in a run: the order decides what was computed from what."""
    policy_version: int
    """The round, by the policy that it samples from; for `evaluate` the policy that answers."""
    stage: str
    new_take: int
    """1, 2, ... of this stage and round; the first rows were of take 0."""
    because: str
    """`forced`, or what had become of its inputs."""
    superseded: int
    """Rows of the take before, which stay where they are."""
    stale: Sequence[str]
    """Later stages of the round that had rows by then: stale until they are run again."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One greedy answer of one policy to one example of the eval split."""

    policy_version: int
    policy_hash: str
    example_id: str
    text: str
    completion_token_ids: Sequence[int]
    finish_reason: str
    predicted_span: Span | None
    iou: float
    """Unrounded temporal IoU with the best window (protocols `strict` and `qvhighlights`); no span
    counts 0."""
    timelens_span: Span | None
    """What TimeLens' evaluation reads in the text, before it rounds (`protocols.py`)."""
    timelens_iou: float | None
    """Its IoU by protocol `timelens`, of whole seconds and the first window; no span counts 0. None
    in rows of before it was kept."""
    engine: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ModelEvaluation:
    """One greedy answer of any Hugging Face model to one example of the eval split."""

    model_hash: str
    """Hash of its weights."""
    question_hash: str
    """`question_key.evaluation_question`: how it was asked."""
    model_id: str
    """Name of its folder."""
    example_id: str
    text: str
    completion_token_ids: Sequence[int]
    finish_reason: str
    predicted_span: Span | None
    iou: float
    """As `Evaluation.iou`; so are the next two."""
    timelens_span: Span | None
    timelens_iou: float | None
    engine: str
    seconds: float


def make_example_id(video_path: str, query: str, *spans: Span) -> str:
    """16 hex digits over the annotation's content."""
    ends = [f"{end:.3f}" for span in spans for end in span]
    return _digest("example", video_path, query, *ends)[:16]


def make_rollout_id(policy_version: int, example_id: str, sample_index: int) -> str:
    """Deterministic, readable, sorted by round: `v3-<example_id>-0`."""
    return f"v{policy_version}-{example_id}-{sample_index}"


def make_seed(run_seed: int, purpose: str, policy_version: int, example_id: str, index: int) -> int:
    """A seed in [0, 2^63) that depends on its arguments only, never on order or process."""
    digest = _digest("seed", str(run_seed), purpose, str(policy_version), example_id, str(index))
    return int(digest[:16], 16) >> 1


def _digest(*parts: str) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()
