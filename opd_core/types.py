"""The contract between stages: one frozen record a table row, and nothing that is slow to import.

Every stage reads records, computes, and appends records. A field is a column of its table:
`Annotated` gives its description, once for the code, the docs and `DESCRIBE`, and
`storage/tables/columns.py` the column. Absent is `None`, never 0.0.
Times are seconds from the start of the video. Log-probabilities are natural logarithms.

The three log-probabilities of a sampled token, which must never be mixed up:

    sampling_logprobs   recorded by the engine while it sampled          (policy v)
    student_logprobs    recomputed by the trainer's own forward          (policy v, first step)
    teacher_logprobs    one forward of the frozen teacher

All three are log-softmaxes over the same distribution: the vocabulary without the vision
placeholders (see `opd_core/model/vocabulary.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic, NamedTuple, TypeVar

Record = TypeVar("Record")

FLOAT64 = "float64"
"""Beside a description: lists of numbers are stored in 32 bits, these are not."""


class VideoOPDError(Exception):
    """An error a user can cause. Its text is one sentence that names the thing and the fix."""


class EngineCrashError(VideoOPDError):
    """What computes has crashed: a process of an engine was killed, or a device had no memory left.

    The same again may well work, and a stage goes on from its rows: it is tried once more.
    """


@dataclass(frozen=True, slots=True)
class Policy:
    """Weights that answer: one version of the student's, or the teacher's in a round."""

    version: int
    path: Path
    """Checkpoint folder, absolute."""
    weights_hash: str

    @property
    def round(self) -> int:
        """Number of the round that samples from it, which makes the next policy."""
        return self.version + 1


class Span(NamedTuple):
    """A moment of a video: `start < end`, both in seconds."""

    start: float
    end: float


@dataclass(frozen=True, slots=True)
class GroundingExample:
    """One video, one sentence, and when it is true: once, or (QVHighlights) several times."""

    example_id: Annotated[
        str,
        "`make_example_id(video_path, query, *spans)`: the same annotation has one id anywhere.",
    ]
    video_path: Annotated[
        str,
        "As in the annotation file, relative to the `videos` folder of the config.",
    ]
    duration: Annotated[float, "Length of the video as annotated, s."]
    query: Annotated[str, "The sentence to ground."]
    span: Annotated[
        Span, "the first true span, s: what one answer is trained towards, where a loss needs one."
    ]
    source: Annotated[str, "Data set the annotation came from."]
    split: Annotated[str, "`train` or `eval`."]
    other_spans: Annotated[
        Sequence[Sequence[float]],
        "[[start, end], ...] of the other times at which the sentence is true, as "
        "annotated. An answer counts by the span it fits best.",
        FLOAT64,
    ] = ()

    @property
    def spans(self) -> tuple[Span, ...]:
        return (self.span, *(Span(*other) for other in self.other_spans))


@dataclass(frozen=True, slots=True)
class QuarantinedItem:
    """Something that could not be used, with the reason; the rest of the run went on without it."""

    item_id: Annotated[
        str,
        "example id, or `file:line` of an annotation that made no example.",
    ]
    stage: Annotated[str, "Stage that gave it up."]
    video_path: Annotated[str | None, "Its video, when it has one."]
    reason: Annotated[str, "Why, in a sentence."]
    policy_version: Annotated[int | None, "Round; null: found in none."]
    kind: Annotated[
        str | None,
        "What is at fault: `no file`, `decoder lost` and `worker lost` are tried again in "
        "later rounds. Null: rows of older programs.",
    ] = None


@dataclass(frozen=True, slots=True)
class DataChange:
    """What became of an annotation since the run first read it. `examples` keeps it as it was."""

    sequence: Annotated[
        int,
        "1, 2, ... in a run; the changes that were found in one reading have one number.",
    ]
    item_id: Annotated[
        str,
        "As in `quarantine`: an example id, or the place of an annotation that makes no example.",
    ]
    change: Annotated[
        str,
        "`added` (after the run began), `removed`, `returned`, `moved` (to the other "
        "split) or `corrected` (another duration or source; another sentence or span "
        "is another example).",
    ]
    split: Annotated[
        str | None,
        "`train` or `eval` from now on; None where no annotation file holds it any more.",
    ]
    duration: Annotated[float | None, "As annotated from now on, s."]
    source: Annotated[str | None, "As annotated from now on."]
    newest_policy: Annotated[
        int,
        "The newest committed policy when that was found; rounds that sample from it go by it.",
    ]


@dataclass(frozen=True, slots=True)
class Draw:
    """An example drawn for a round. Kept, so that a resumed round works on the same examples."""

    policy_version: Annotated[int, "Version of the student's weights; 0 = base."]
    example_id: Annotated[str, "The example; joins `examples`."]
    position: Annotated[
        int,
        "Order of work in the round: 0, 1, ... Sentences of one video are neighbours.",
    ]


@dataclass(frozen=True, slots=True)
class TeacherPrediction:
    """One of the teacher's own k answers to an example (TRPV); made once, kept for ever."""

    example_id: Annotated[str, "The example; joins `examples`."]
    prediction_index: Annotated[int, "0 ... k-1."]
    teacher_id: Annotated[str, "Name of the teacher."]
    teacher_hash: Annotated[str, "Hash of the teacher's weights."]
    question_hash: Annotated[
        str,
        "`question_key.prediction_question`: how it was asked; answers of one hash are comparable.",
    ]
    text: Annotated[str, "The answer, decoded."]
    predicted_span: Annotated[Span | None, "the answered span, s; null: none."]
    iou: Annotated[
        float,
        "Temporal IoU with the truth; an answer without a span counts 0 (a rule, not a default).",
    ]
    seed: Annotated[int, "Seed it was sampled with."]
    pixel_hash: Annotated[str, "Hash of the resized uint8 frames it saw."]
    reused_from: Annotated[
        str | None,
        "run_id of the run that asked, of a copied answer; null: asked here.",
    ]


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled answer of one policy to one example, with all that is needed to redo it."""

    rollout_id: Annotated[str, "The rollout: v<policy_version>-<example_id>-<sample>."]
    policy_version: Annotated[int, "Version of the student's weights; 0 = base."]
    policy_hash: Annotated[
        str,
        "Hash of the weights that sampled it; `truth` where nothing did.",
    ]
    answered_by: Annotated[
        str,
        "`student`; `base` (policy 0), `teacher` or `truth` where a baseline trains on answers of "
        "another's.",
    ]
    example_id: Annotated[str, "The example; joins `examples`."]
    sample_index: Annotated[int, "0 ... rollouts per example - 1."]
    seed: Annotated[int, "Seed it was sampled with."]
    prompt_token_ids: Annotated[Sequence[int], "The prompt's tokens, video pads included."]
    completion_token_ids: Annotated[
        Sequence[int],
        "[T] what was sampled, the end token included when there is one.",
    ]
    sampling_logprobs: Annotated[
        Sequence[float] | None,
        "[T] log-prob of each token under the weights that sampled it (log pi_v where it "
        "is the student's), "
        "recorded while sampling; None where nothing sampled (`truth`).",
    ]
    finish_reason: Annotated[str, "`stop` (end token) or `length`."]
    text: Annotated[str, "The answer, decoded."]
    predicted_span: Annotated[Span | None, "the answered span, s; null: none."]
    student_iou: Annotated[
        float,
        "Temporal IoU with the truth; an answer without a span counts 0.",
    ]
    frame_indices: Annotated[Sequence[int], "[F] Which frames of the file were seen."]
    frame_timestamps: Annotated[Sequence[float], "[F] seconds, of the same frames.", FLOAT64]
    grid_thw: Annotated[Sequence[int], "[3] Vision patches: time, height, width, unmerged."]
    pixel_hash: Annotated[str, "Hash of the resized uint8 frames."]
    processor_hash: Annotated[str, "Hash of tokenizer, template and processors."]
    engine: Annotated[str, "What sampled it."]
    engine_version: Annotated[str, "Its version."]
    engine_mismatch: Annotated[
        float | None,
        "Largest |trainer's - sampling| log-prob of a token, where the rollout was "
        "compared by the gate; None elsewhere.",
    ]
    seconds: Annotated[float, "Wall-clock of this rollout's share of its batch."]
    second_per_grid: Annotated[
        float | None,
        "Seconds between vision tokens in time, where the model's positions count "
        "them (Qwen2.5-VL); None where times are in the prompt.",
    ] = None


@dataclass(frozen=True, slots=True)
class TeacherScore:
    """The teacher's log-probabilities of one rollout's tokens; the teacher generated nothing."""

    rollout_id: Annotated[str, "The rollout: v<policy_version>-<example_id>-<sample>."]
    policy_version: Annotated[int, "Version of the student's weights; 0 = base."]
    teacher_id: Annotated[str, "Name of the teacher."]
    teacher_hash: Annotated[str, "Hash of the teacher's weights."]
    teacher_logprobs: Annotated[Sequence[float], "[T] log q of each sampled token."]
    topk_token_ids: Annotated[
        Sequence[Sequence[int]] | None,
        "[T, K] The teacher's K likeliest tokens at each position.",
    ]
    topk_logprobs: Annotated[
        Sequence[Sequence[float]] | None,
        "[T, K] their log-probs under the full vocabulary (not renormalised: the rest "
        "is the tail).",
    ]
    tail_logprobs: Annotated[
        Sequence[float] | None,
        "[T] log of the probability of all other tokens together; kept, because 1 - sum cancels.",
    ]
    teacher_entropies: Annotated[
        Sequence[float] | None,
        "[T] entropy of q at each position, nats, over the tokens that may be sampled.",
    ]
    hidden_states: Annotated[
        Sequence[Sequence[float]] | None,
        "[T, D] The teacher's last hidden states that predict the tokens, after its "
        "final norm; float32 holds a bfloat16 exactly (score.hidden_states).",
    ]
    scorer: Annotated[
        str,
        "What computed it, in words (`scoring.describe_scorer`): engine, precision, what was kept.",
    ]
    content_hash: Annotated[
        str,
        "`score_key.content_hash`: two scores of one hash are the same numbers.",
    ]
    reused_from: Annotated[
        str | None,
        "`run_id/rollout_id` of the row that was computed, where this one is a copy "
        "of its numbers.",
    ]
    seconds: Annotated[float, "Its share of its batch's wall-clock; 0 for a copy."]


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far apart policy and teacher are at each token of a rollout, over the whole vocabulary.

    Exact, from both full distributions; nats, never negative.
    """

    rollout_id: Annotated[str, "The rollout: v<policy_version>-<example_id>-<sample>."]
    policy_version: Annotated[int, "Version of the student's weights; 0 = base."]
    teacher_hash: Annotated[str, "Hash of the teacher's weights."]
    forward_kl: Annotated[Sequence[float], "[T] KL(q || pi_v), whole vocabulary, nats."]
    reverse_kl: Annotated[Sequence[float], "[T] KL(pi_v || q), whole vocabulary, nats."]
    js: Annotated[Sequence[float], "[T] Jensen-Shannon divergence, nats, at most log 2."]
    max_teacher_mismatch: Annotated[
        float,
        "Largest |log-prob from the stored hidden states - teacher_logprobs| of the "
        "rollout's tokens: whether the lm_head is the one of the teacher that scored.",
    ]
    max_student_mismatch: Annotated[
        float,
        "Largest |this forward's - sampling| log-prob of the rollout's tokens.",
    ]
    seconds: Annotated[float, "Wall-clock of this rollout's share of its batch."]


@dataclass(frozen=True, slots=True)
class Selection:
    """Whether focus took a rollout, by which curriculum, and the numbers it decided on."""

    rollout_id: Annotated[str, "The rollout: v<policy_version>-<example_id>-<sample>."]
    policy_version: Annotated[int, "Version of the student's weights; 0 = base."]
    example_id: Annotated[str, "The example; joins `examples`."]
    curriculum: Annotated[str, "`tvdf`, `scc`, `timelens` or `uniform`."]
    selected: Annotated[bool, "Whether the update trains on it."]
    reason: Annotated[
        str,
        "`selected`, `teacher unreliable`, `teacher unknown`, `disagreement outside top k`, ...",
    ]
    teacher_iou: Annotated[float | None, "Mean IoU of the teacher's answers."]
    student_iou: Annotated[float | None, "IoU of the unit's rollouts."]
    disagreement: Annotated[float | None, "teacher_iou - student_iou."]
    reverse_kl: Annotated[
        float | None,
        "k1 estimate of KL(pi_v || q): mean of sampling - teacher log-probs of the unit, "
        "nats a token, where the ranking is by it.",
    ]
    rank: Annotated[
        int | None,
        "Place in the curriculum's order (or its pool's): 0 = largest disagreement, "
        "or first drawn.",
    ]
    pool: Annotated[
        str | None,
        "Part of the ranking it was in: `frontier`, `anchor` (scc), `bucket 0` ... (buckets).",
    ]
    weight: Annotated[
        float | None,
        "Of a weighted draw: proportional to the probability of being drawn first.",
    ]
    settings: Annotated[str, "The config's [focus], as JSON."]
    seed: Annotated[int, "Seed of what the curriculum draws."]
    question_hash: Annotated[
        str | None,
        "Of the teacher's answers that were read; None where the curriculum needs none.",
    ]
    rollouts_version: Annotated[
        int,
        "Version of the table that was read; so are the next two.",
    ]
    predictions_version: Annotated[int, "The same of `teacher_predictions`."]
    scores_version: Annotated[int, "The same of `teacher_scores`."]


@dataclass(frozen=True, slots=True)
class UpdateStep:
    """One optimiser step, all numbers over the step's trained tokens."""

    step: Annotated[int, "0, 1, ... within the update."]
    loss: Annotated[float, "Objective, over the step's trained tokens."]
    learning_rate: Annotated[float, "As applied."]
    grad_norm: Annotated[float, "Before clipping."]
    tokens: Annotated[int, "Trained tokens."]
    rollouts: Annotated[int, "Trained rollouts."]
    reverse_kl: Annotated[
        float | None,
        "k1 estimate of KL(pi || q), of the policy as trained so far: mean of student - "
        "teacher log-probs over the sampled tokens; None without the teacher's scores, or "
        "on answers that the policy has not sampled. So are the next four, which compare "
        "with the policy that sampled.",
    ]
    policy_kl: Annotated[
        float | None,
        "KL(pi_v || pi) to the policy that the update began with: mean over tokens of "
        "ratio - 1 - log ratio (k3), ratio = pi / pi_v. pi_v is the trainer's own "
        "where another engine sampled and the loss needs it "
        "(`opd_core/update/importance.py`), else as it was sampled.",
    ]
    ratio_min: Annotated[float | None, "Smallest pi / pi_v of a token."]
    ratio_max: Annotated[float | None, "Largest pi / pi_v of a token."]
    effective_sample_size: Annotated[
        float | None,
        "(sum w)^2 / (n * sum w^2) of what a token counts by in the loss: its "
        "importance weight, times pi / pi_v in the objectives that have the ratio. 1: "
        "all count alike.",
    ]
    tis_weight_mean: Annotated[
        float | None,
        "Mean truncated importance weight of a token, as the objective used it (of a "
        "weighted sum the mean of its parts by their shares); None where no such "
        "weights were used.",
    ]
    tis_truncated: Annotated[
        float | None,
        "Share of tokens whose weight was cut off at update.tis_cap.",
    ]
    seconds: Annotated[float, "Wall-clock of the step."]


@dataclass(frozen=True, slots=True)
class TrainedRollout:
    """A rollout as the update first met it: the third of its log-probs."""

    rollout_id: Annotated[str, "The rollout: v<policy_version>-<example_id>-<sample>."]
    policy_version: Annotated[
        int,
        "Of the policy that sampled it; its update makes `policy_version` + 1.",
    ]
    step: Annotated[
        int,
        "The optimiser step it was first part of; at step 0 no weight had moved.",
    ]
    student_logprobs: Annotated[
        Sequence[float],
        "[T] log pi of each sampled token in that step's forward pass.",
    ]


@dataclass(frozen=True, slots=True)
class StageUse:
    """What a stage of a round took, its executions together; one that was killed is not in it."""

    stage: Annotated[str, "Its name; `evaluate`: of the policy that the round samples from."]
    seconds: Annotated[float, "Wall-clock."]
    tokens: Annotated[
        int | None,
        "Tokens that passed through models of its process, a shared prefix once, a forward and "
        "backward pass once; None: none did, as where the engine is another process.",
    ]
    tokens_per_second: Annotated[float | None, "tokens / seconds."]
    peak_memory: Annotated[int, "Bytes that its process held at most."]
    memory_of: Annotated[
        str, "`cuda`: allocated on the accelerator; `process`: resident, of the process."
    ]


@dataclass(frozen=True, slots=True)
class Update:
    """A committed round: policy `policy_version - 1` became `policy_version`. Written last."""

    policy_version: Annotated[int, "Of the new policy."]
    policy_hash: Annotated[str, "Hash of the new policy's weights."]
    parent_version: Annotated[int, "The policy that was trained."]
    parent_hash: Annotated[str, "Hash of its weights."]
    checkpoint: Annotated[str, "Folder of the new policy, relative to the run."]
    objective: Annotated[str, "Its name, or those of a weighted sum."]
    uses_scores: Annotated[
        bool,
        "Whether the objective needs the teacher's scores of the rollouts.",
    ]
    teacher_hash: Annotated[
        str,
        "Hash of the teacher's weights; of several, theirs with a `+` between them, in the order "
        "of `[[teachers]]`. The scores of the round say whose each rollout is.",
    ]
    rollouts: Annotated[int, "Rollouts trained on."]
    tokens: Annotated[int, "Completion tokens trained on."]
    max_logprob_mismatch: Annotated[
        float | None,
        "Largest |student - sampling| log-prob on the first step, before any weight "
        "moved; None on answers that the policy has not sampled.",
    ]
    stopped_early: Annotated[
        str | None,
        "Why the update ended before its last step, or None.",
    ]
    optimizer_restarted: Annotated[
        str | None,
        "Why the optimiser began anew, its moments and warm-up lost; None where it "
        "went on from the round before, and in the first round.",
    ]
    teacher_passes_saved: Annotated[
        int,
        "Rollouts that focus could no longer select and that were therefore never scored.",
    ]
    steps: Annotated[Sequence[UpdateStep], "One entry an optimiser step."]
    seconds: Annotated[float, "Wall-clock of the update."]
    mean_logprob_mismatch: Annotated[
        float | None,
        "Mean of the same tokens; None where `max_logprob_mismatch` is.",
    ] = None
    logprob_bound: Annotated[
        float | None,
        "Nats that `max_logprob_mismatch` was held against (`opd_core/model/agreement.py`).",
    ] = None
    mean_logprob_bound: Annotated[
        float | None,
        "Nats that the mean was held against; null where it was not bounded.",
    ] = None
    moved_share: Annotated[
        float | None,
        "Share of the trained weights that are others than the parent's, both in "
        "student.dtype, as the sampler sees them; null: rows of older programs.",
    ] = None
    stages: Annotated[
        Sequence[StageUse] | None,
        "Seconds, tokens and memory of the round's stages up to this one; null: rows of "
        "older programs.",
    ] = None


@dataclass(frozen=True, slots=True)
class Rerun:
    """A stage of a round began again: what it had written before is superseded."""

    sequence: Annotated[
        int,
        "1, 2, ... in a run: the order decides what was computed from what.",
    ]
    policy_version: Annotated[
        int,
        "The round, by the policy that it samples from; for `evaluate` the policy that answers.",
    ]
    stage: Annotated[str, "What was run again."]
    new_take: Annotated[
        int,
        "1, 2, ... of this stage and round; the first rows were of take 0.",
    ]
    because: Annotated[str, "`forced`, or what had become of its inputs."]
    superseded: Annotated[int, "Rows of the take before, which stay where they are."]
    stale: Annotated[
        Sequence[str],
        "Later stages of the round that had rows by then: stale until they are run again.",
    ]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What an evaluation protocol that has no columns of its own makes of an answer."""

    protocol: Annotated[str, "Its name (the entry point's, of another package's)."]
    start: Annotated[float | None, "Start that it reads in the text, s, not rounded; null: none."]
    end: Annotated[float | None, "End of the same span, s."]
    iou: Annotated[float, "Its IoU; no span counts 0."]

    @property
    def span(self) -> Span | None:
        return None if self.start is None or self.end is None else Span(self.start, self.end)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One greedy answer of one policy to one example of the eval split."""

    policy_version: Annotated[int, "Version of the student's weights; 0 = base."]
    policy_hash: Annotated[str, "Hash of the policy's weights."]
    example_id: Annotated[str, "The example; joins `examples`."]
    text: Annotated[str, "The answer, decoded."]
    completion_token_ids: Annotated[Sequence[int], "[T] The answer's tokens, end included."]
    finish_reason: Annotated[str, "`stop` (end token) or `length`."]
    predicted_span: Annotated[Span | None, "the answered span, s; null: none."]
    iou: Annotated[
        float,
        "Unrounded temporal IoU with the best window (protocols `strict` and "
        "`qvhighlights`); no span counts 0.",
    ]
    timelens_span: Annotated[
        Span | None,
        "the span that TimeLens' evaluation reads in the text, s, not rounded; null: none.",
    ]
    timelens_iou: Annotated[
        float | None,
        "Its IoU by protocol `timelens`, of whole seconds and the first window; no "
        "span counts 0. None in rows of before it was kept.",
    ]
    engine: Annotated[str, "What sampled it."]
    seconds: Annotated[float, "Wall-clock of this answer's share of its batch."]
    judgements: Annotated[
        Sequence[Judgement] | None,
        "What each protocol without columns of its own makes of it; null: none was installed.",
    ] = None


@dataclass(frozen=True, slots=True)
class ModelEvaluation:
    """One greedy answer of any Hugging Face model to one example of the eval split."""

    model_hash: Annotated[str, "Hash of the model's weights."]
    question_hash: Annotated[str, "Hash of how it was asked: template, frames, engine, ..."]
    model_id: Annotated[str, "Name of the model's folder."]
    example_id: Annotated[str, "The example; joins `examples`."]
    text: Annotated[str, "The answer, decoded."]
    completion_token_ids: Annotated[Sequence[int], "[T] The answer's tokens, end included."]
    finish_reason: Annotated[str, "`stop` (end token) or `length`."]
    predicted_span: Annotated[Span | None, "the answered span, s; null: none."]
    iou: Annotated[float, "Unrounded IoU (`strict`, `qvhighlights`); no span counts 0."]
    timelens_span: Annotated[
        Span | None,
        "the span that TimeLens' evaluation reads in the text, s, not rounded; null: none.",
    ]
    timelens_iou: Annotated[
        float | None,
        "IoU by protocol `timelens`; no span counts 0; null: written before it was kept.",
    ]
    engine: Annotated[str, "What sampled it."]
    seconds: Annotated[float, "Wall-clock of this answer's share of its batch."]
    judgements: Annotated[
        Sequence[Judgement] | None,
        "What each protocol without columns of its own makes of it; null: none was installed.",
    ] = None


@dataclass(frozen=True, slots=True)
class Batch(Generic[Record]):
    """What a stage has computed of some examples, ready to be appended."""

    records: tuple[Record, ...]
    quarantined: tuple[QuarantinedItem, ...]
    examples: int
    """Examples with which this batch has dealt; those that were already done are not counted."""


def join_hashes(hashes: Iterable[str]) -> str:
    """What stands for several teachers where a row has room for one: `4f...+a0...`."""
    return "+".join(hashes)


def split_hashes(joined: str) -> list[str]:
    """The teachers of a row of `updates`, in the order of `[[teachers]]`."""
    return joined.split("+")


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
