"""What a run config may say: a frozen, strict record for each section of the TOML.

Defaults are the reference setting of the method; nothing here is computed at run time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, NewType, Self

from pydantic import Field, field_validator, model_validator

from opd_core.config.section import LATER, ChoosingSection, Section
from opd_core.extensions import (
    CURRICULA,
    ENGINES,
    OBJECTIVES,
    TEMPLATES,
    TRACKERS,
    Quantise,
)

FRAMES_FOLDER = "videoopd-frames"
"""Named so that it is not taken for frames of the user's own."""
TRACKERS_FOLDER = "videoopd-trackers"
"""As that."""


Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Dtype = Literal["float32", "bfloat16", "float16"]
EngineName = Annotated[str, ENGINES]
ModelPath = NewType("ModelPath", Path)
"""A folder, or a model's name on the hub (`opd_core/hub/name.py`). In a config that was loaded, a
folder is absolute and a name relative."""


class RunSection(Section):
    path: Path
    """Folder of the run: tables, checkpoints, logs."""
    seed: int = 0


class DataSection(Section):
    train: Path
    """Annotations, TimeLens-100K JSONL."""
    eval: Path
    videos: Path
    """Folder that the annotations' video paths are relative to."""


class ModelSection(Section):
    path: ModelPath
    """Folder of a Hugging Face checkpoint (model and processor), or its name on the hub:
    `Qwen/Qwen3-VL-8B-Instruct`, or with a branch, tag or commit `Qwen/Qwen3-VL-8B-Instruct@v1`.
    What the hub's cache lacks of it is fetched; a run stays at the commit that it began with."""
    dtype: Dtype = "bfloat16"


class TeacherSection(ModelSection):
    engine: EngineName = "hf"
    """For its predictions and its scores. Scoring by vLLM projects every prompt token onto the
    vocabulary: for teachers that only fit on several GPUs."""
    predictions: Positive = 4
    """Teacher predictions an example (k of the paper's TRPV), which measure its reliability."""
    quantise: Annotated[Quantise, LATER] = "none"
    """How the linear layers of its language model lie in memory: as `dtype` says, in `fp8` (half of
    bfloat16), or in `int4` (a quarter; not for objectives of the sampled token). How they are
    rounded is in `opd_core/model/quantised.py`."""
    cache: Path | None = None
    """Folder of another run, whose teacher predictions to the same question are copied."""


class TakesSection(Section):
    """Which examples: those whose annotation matches one name of every key that is given. A `*` in
    a name stands for any text, so that `charades/*` is a folder of videos."""

    source: tuple[str, ...] | None = None
    """The data set that the annotation came from, as `source` of the annotation file says."""
    video_path: tuple[str, ...] | None = None
    """The video, as the annotation file names it."""

    @field_validator("source", "video_path", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    def match(self, annotation: Mapping[str, str]) -> bool:
        """Whether they are those of an annotation, of which `annotation` has the keys."""
        return all(
            names is None or any(_pattern(name).fullmatch(annotation[key]) for name in names)
            for key, names in self
        )


@cache
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\*", ".*"), re.DOTALL)


class RoutedTeacherSection(TeacherSection):
    """One of several teachers, in place of [teacher]: one such table each. An example is the first
    one's that takes it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    """What `--set teachers.NAME.dtype=...` and messages call it."""
    takes: TakesSection = TakesSection()
    """Its examples: `takes = { source = ["charades"] }`. Not given: all that those before leave."""

    @property
    def alone(self) -> TeacherSection:
        """What [teacher] would say, were it the only one."""
        return TeacherSection(**{name: getattr(self, name) for name in TeacherSection.model_fields})


class PromptSection(ChoosingSection):
    parts = TEMPLATES
    template: Annotated[str, TEMPLATES] = "timelens"
    """How the question is put, and how an answer is read (`opd_core/templates/named.py`)."""
    text: str | None = None
    """The question in your own words instead, with `{query}` where the sentence is to stand; a
    brace that is meant as one is written twice."""
    reader: str | None = None
    """How answers are read: the name of a template, or a regular expression with two groups, the
    start and the end (or `(?P<start>...)`, `(?P<end>...)`), each in seconds, `mm:ss` or with its
    unit. None: the template's own. prompt.text needs one."""
    answer: str | None = None
    """How an answer is written, for rollout.source = "truth": `"{start:.1f} - {end:.1f}"`. None: as
    the template whose name is the reader's; a regular expression has none."""

    def chosen(self) -> Sequence[str]:
        return [self.template]

    @model_validator(mode="after")
    def _can_be_used(self) -> Self:
        if (self.text, self.reader, self.answer) != (None, None, None):
            from opd_core.templates.own_prompt import template_of

            template_of(self)
        return self


class VideoSection(Section):
    fps: Annotated[float, Field(gt=0)] = 2.0
    max_frames: Positive = 768
    max_video_tokens: Positive = 8192
    """The tokens of a video, after merging; frames are resized so that it stays below them, as its
    processor counts: very wide pictures and odd numbers of frames may cost a little more."""
    max_frame_tokens: Positive | None = None
    """The tokens of one frame at most: a short video would spend all of its own on few frames. The
    paper's is 768. None: no such cap, as the checkpoints' processors do it unless they are told."""
    decoder: Literal["pyav", "decord"] = "pyav"
    decode_timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    """A decoder that takes longer is killed and its video quarantined."""
    cached_videos: Positive = 1024
    """Decoded videos kept in memory by a process."""


class FramesSection(Section):
    """The frame store: what was decoded and resized, kept on disk for the next stage and run."""

    enabled: bool = True
    path: Path | None = None
    """Folder of the store; runs may share it. None: `videoopd-frames` beside the run's folder."""
    max_gib: Annotated[float, Field(gt=0)] = 20.0
    """Beyond it, the videos that were not used for longest are removed."""
    codec: Literal["raw", "jpeg"] = "raw"
    """`jpeg` takes about a tenth of the space and loses a little. All stages see what is left, also
    the first, and without a store: the pixels depend on this line, never on what is stored."""


class RolloutSection(Section):
    source: Literal["student", "base", "teacher", "truth"] = "student"
    """Who gives the answers that are trained on. `student` is on-policy distillation; `base`
    (policy 0 in every round: the prefixes of Lightning OPD, arXiv 2604.13010), `teacher` (answers
    sampled from it) and `truth` (the annotation as an answer) are the baselines that it is compared
    with. Theirs have no importance weights."""
    engine: EngineName = "hf"
    max_engine_mismatch: Annotated[float, Field(gt=0)] | None = None
    """Nats. Once a stage some examples are also scored by the trainer's own forward, in another
    order and packing; a token on which the engine's log-prob is further off stops the stage. None:
    what rounding can do (`opd_core/model/agreement.py`): 1e-3 in float32 on a CPU; in bfloat16,
    where single tokens lie far apart, the mean over the tokens is bounded beside them."""
    examples_per_round: Positive = 256
    rollouts_per_example: Positive = 1
    max_queries_per_video: Positive = 8
    """Sentences of one video that may be drawn into one round (they share its prefix)."""
    max_new_tokens: Positive = 512
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    """These three are the model's own distribution. Anything else is refused, because then the
    gradient is no longer that of the reverse KL, unless the next line says otherwise."""
    allow_off_policy_sampling: bool = False
    prompts_per_batch: Positive = 32
    """Prompts sampled together; those of two batches are in memory. The last batch is lost when a
    process is killed (of vLLM, which is asked ahead, the last two), beside what
    storage.flush_seconds says."""

    @model_validator(mode="after")
    def _samples_its_own_distribution(self) -> Self:
        wanted = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
        off = {k: v for k, v in wanted.items() if getattr(self, k) != v}
        if off and not self.allow_off_policy_sampling:
            name, value = next(iter(off.items()))
            raise ValueError(
                f"{name} = {getattr(self, name)} samples another distribution than the policy's "
                f"own; set rollout.{name} = {value}, or rollout.allow_off_policy_sampling = true"
            )
        return self


class ScoreSection(Section):
    teacher_topk: Annotated[int, Field(ge=0)] = 32
    """Teacher tokens and log-probs kept at each position; 0 keeps none."""
    teacher_entropy: bool = False
    """Keep the entropy of the teacher's distribution at each position."""
    hidden_states: bool = False
    """Keep the teacher's last hidden states (4 bytes x hidden size a token), from which
    `videoopd rescore` computes exact divergences without the teacher."""
    cache: Path | None = None
    """Folder of another run, whose scores of the same content are copied instead of computed."""
    prompts_per_batch: Annotated[Positive, LATER] = 32
    """Prompts whose rollouts are scored together, and appended together. Workers of [cluster] get a
    batch at a time: with many of them, fewer balance better."""


class FocusSection(ChoosingSection):
    parts = CURRICULA
    curriculum: Annotated[str, CURRICULA] = "tvdf"
    """Which rollouts are trained on (`opd_core/focus/`)."""
    min_teacher_iou: Fraction = 0.3
    """The mean IoU of an example's teacher predictions must reach it (TRPV). Where it is not given,
    0.7 with curriculum = "scc"."""
    unit: Literal["example", "rollout"] = "example"
    """`example`: an example with all its rollouts; `rollout`: each rollout by itself."""
    disagreement: Literal["iou", "reverse_kl"] = "iou"
    """What tvdf and scc rank by: teacher_iou - student_iou, or the mean of sampling_logprobs -
    teacher_logprobs, for which every rollout of a reliable teacher is scored first."""
    selection: Literal["top_k", "stride", "buckets", "gaussian"] = "top_k"
    """How tvdf takes `top_k` items of that ranking (`opd_core/focus/tvdf.py`)."""
    top_k: Positive = 128
    """Items that tvdf and timelens take."""
    buckets: Positive = 5
    gaussian_center: float = 0.9
    gaussian_sigma: Annotated[float, Field(gt=0)] = 0.2
    """The width of tvdf's `gaussian`, over the disagreement scaled to [0, 1]."""
    max_student_iou: Fraction = 0.7
    """scc: a student that reaches it has the example; the teacher need not score it."""
    frontier: Positive = 900
    """scc: items on which the student is below `max_student_iou`, by the disagreement."""
    anchors: Annotated[int, Field(ge=0)] = 100
    """scc: items on which it is not, drawn by seed, so that what is known stays known."""
    timelens_mean: float = 0.05
    timelens_sigma: Annotated[float, Field(gt=0)] = 0.2
    """timelens: the Gaussian over the student's IoU; the values of its released training script."""

    def chosen(self) -> Sequence[str]:
        return [self.curriculum]

    @model_validator(mode="before")
    @classmethod
    def _reliable_for_its_curriculum(cls, data: object) -> object:
        if not isinstance(data, dict) or data.get("curriculum") not in CURRICULA:
            return data
        reliable = CURRICULA[data["curriculum"]].min_teacher_iou
        return data if reliable is None else {"min_teacher_iou": reliable} | data


class LoraSection(Section):
    rank: Positive
    alpha: Positive = 32
    dropout: Fraction = 0.0
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Last parts of the names of linear layers in the language model. None: all of them, in
    `opd_core/model/architectures.py`; a mixture of experts has those of its attention only."""


class GRPOSection(Section):
    """Settings of the objective `grpo`, whose reward is the answer's temporal IoU."""

    scale_by_std: bool = True
    """Divide a group's advantages by the standard deviation of its rewards."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    format_reward: Annotated[float, Field(ge=0)] = 0.0
    """Added to the reward of an answer that holds a span."""
    reference_kl: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL to the base student; above 0 it costs one more forward pass of a tree."""


class UpdateSection(ChoosingSection):
    parts = OBJECTIVES
    objective: Annotated[
        str | Annotated[dict[str, Annotated[float, Field(gt=0)]], Field(min_length=1)], OBJECTIVES
    ] = "policy_gradient"
    """What is minimised; docs/how-to/objectives.md has which to use when. Or a weighted sum, as a
    table: `objective = { policy_gradient = 1.0, grpo = 0.5 }`."""
    teacher_distribution: Literal["topk", "hidden_states"] = "topk"
    """What the exact objectives compare with: the teacher's kept top-k and one bucket for the rest,
    or its whole distribution from kept hidden states (score.hidden_states) and its lm_head."""
    jsd_beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    student_topk: Positive = 32
    """K of `student_topk_reverse_kl`."""
    grpo: GRPOSection = GRPOSection()
    max_advantage: Annotated[float, Field(gt=0)] | None = None
    """Nats at which |log q - log pi_v| of a token is cut off in `policy_gradient` and
    `unlikely_penalty`."""
    skip_special_tokens: bool = False
    """Leave the tokenizer's special tokens (the answer's end) out of the loss."""
    entropy_weight: bool = False
    """Weigh each token by 1 - exp(-H), H the policy's entropy there: less for the tokens of the
    format, of which it is sure."""
    epochs: Positive = 1
    """Passes over the selected rollouts."""
    examples_per_step: Positive = 32
    max_steps: Positive | None = None
    learning_rate: Annotated[float, Field(gt=0)] = 1e-6
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Counted over the whole run, not each round."""
    cooldown: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of each round's steps, the last ones, over which the learning rate falls linearly to 0.
    A policy is sampled from and judged as it is after its last step; this takes out the noise of
    those."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    adam_betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    max_policy_kl: Annotated[float, Field(gt=0)] = 0.5
    """Nats a token that the update has moved away from the policy it began with; beyond it the
    round's update ends."""
    max_logprob_mismatch: Annotated[float, Field(gt=0)] | None = None
    """Nats; a larger |student - sampling| log-prob on the first step stops the round. None: as
    rollout.max_engine_mismatch."""
    tis: Literal["auto", "off", "token", "prefix", "sequence"] = "auto"
    """Truncated importance sampling: weights pi_v / mu of the trainer's policy (before its first
    step) over the engine's log-probs. `token`: a token's own ratio (losses of the sampled token);
    `prefix`: the product over the tokens before it (the objectives that are exact at their state);
    `sequence`: the product over the rollout. `auto`: `token` or `prefix`, each part of a
    weighted sum its own, for rollouts of an engine that is not the trainer itself. With weights,
    steps after the first cost a forward pass more, before any weight moves."""
    tis_cap: Annotated[float, Field(ge=1)] = 2.0
    max_tokens_per_pack: Positive = 16384
    """Tokens of one forward and backward pass."""
    completion_rows_per_chunk: Positive = 1024
    """Completion tokens that go through lm_head at once, about: an answer is not cut. Of Qwen's
    vocabulary one is 0.6 MB in float32, of which an update has three to six at a time."""
    freeze_vision: bool = True
    """Vision tower and merger. Always so with [update.lora], which adapts the language model."""
    gradient_checkpointing: bool | Annotated[float, Field(gt=0, lt=1)] = False
    """Compute activations again in the backward pass instead of keeping them; a number is the share
    of layers that do, for a device with memory to spare."""
    weights: Annotated[Literal["float32", "bfloat16"], LATER] = "float32"
    """What the trained weights are kept in while they are trained. `bfloat16` takes half the memory
    (their gradients too): a step is computed in float32 and rounded at random, up or down, by how
    near either is. Frozen weights, and the base under LoRA, lie in student.dtype."""
    optimizer: Annotated[Literal["adamw", "adamw_8bit", "adamw_4bit"], LATER] = "adamw"
    """AdamW with its two moments in 32, 8 or 4 bits; 8 and 4 are torchao's, scaled by blocks."""
    stochastic_rounding: Annotated[bool, LATER] = True
    """Only with weights = "bfloat16", which cannot be trained without: to the nearest, a weight
    does not move at all at the rates of this method."""
    offload: Annotated[bool, LATER] = False
    """Float32 weights and moments lie in the memory of the CPU, where the step is computed; on the
    device are weights and gradients in student.dtype."""
    save_minutes: Annotated[float, Field(ge=0)] | Literal["never"] = 10.0
    """So often, after a step, all is saved that the next one depends on: a killed update goes on
    there. 0: after each step. It takes the disk space of the weights as they are trained and of the
    optimiser's state, twice for a moment."""
    lora: LoraSection | None = None

    @field_validator("save_minutes", mode="before")
    @classmethod
    def _minutes_or_never(cls, value: object) -> object:
        if value == "never" or (isinstance(value, int | float) and value >= 0):
            return value
        raise ValueError(
            f"update.save_minutes = {value!r} is not valid; set it to a number of minutes, to 0 for"
            " each step, or to 'never'"
        )

    @model_validator(mode="after")
    def _weights_can_move(self) -> Self:
        if self.weights == "bfloat16" and not self.stochastic_rounding:
            raise ValueError(
                "update.stochastic_rounding = false with update.weights = 'bfloat16' drops every "
                "change that is smaller than bfloat16 can tell apart, at a learning rate of 1e-6 "
                "all of them; set it to true, or update.weights = 'float32'"
            )
        if self.weights == "bfloat16" and self.offload:
            raise ValueError(
                "update.offload = true keeps float32 weights in the CPU's memory, and "
                "update.weights = 'bfloat16' keeps none; remove one of the two"
            )
        return self

    @model_validator(mode="after")
    def _lora_leaves_vision_alone(self) -> Self:
        if self.lora is not None and not self.freeze_vision:
            raise ValueError(
                "update.freeze_vision = false trains the vision tower, which [update.lora] does "
                "not; set update.freeze_vision = true, or remove [update.lora]"
            )
        return self

    def chosen(self) -> Sequence[str]:
        return [self.objective] if isinstance(self.objective, str) else list(self.objective)

    @field_validator("objective", mode="before")
    @classmethod
    def _objective_is_there(cls, value: object) -> object:
        if value == {}:
            raise ValueError("update.objective = {} names no objective; give it at least one")
        return value


class EvaluateSection(Section):
    engine: EngineName = "hf"
    max_examples: Positive | None = None
    max_new_tokens: Positive = 512
    prompts_per_batch: Positive = 32


class PoliciesSection(Section):
    """Which policies keep their weights once a round is finished. The newest, policy 0, and what a
    round or rerun that is not finished needs always do. Of the others only the manifest stays, with
    the hash of the weights, and says when and why they were let go."""

    keep: Literal["all"] | tuple[Literal["tagged", "best"], ...] = "all"
    """`tagged`: those that `videoopd tag RUN@3 NAME` named; `best`: the one with the highest mIoU
    on the eval split so far. An empty list keeps none of the older ones."""
    every: Positive | None = None
    """Beside `keep`: every so many policies one keeps its weights, 5 means 5, 10, 15, ..."""

    @field_validator("keep", mode="before")
    @classmethod
    def _all_or_a_list(cls, value: object) -> object:
        listed = isinstance(value, list | tuple) and all(n in ("tagged", "best") for n in value)
        if value == "all" or listed:
            return value
        raise ValueError(
            f"policies.keep = {value!r} is not valid; set it to 'all' or to a list of 'tagged' and "
            "'best', which may be empty"
        )

    @model_validator(mode="after")
    def _every_says_something(self) -> Self:
        if self.every is not None and self.keep == "all":
            raise ValueError(
                f"policies.every = {self.every} says nothing beside policies.keep = 'all'; set "
                "policies.keep = [], or name in it what else stays"
            )
        return self


class StorageSection(Section):
    flush_seconds: Annotated[float, Field(ge=0)] = 30.0
    """Finished rollouts, scores and answers are appended once so much time has passed since the
    last append, and when a stage ends or fails. A process that is killed outright loses at most
    what was finished since, and the batch it was working on. 0: each batch by itself."""
    tables: Annotated[str | None, LATER] = None
    """`s3://bucket/prefix`: where a new run puts its tables, and nothing else. Keys and address are
    the environment's. None: in run.path."""

    @field_validator("tables")
    @classmethod
    def _is_a_store(cls, tables: str | None) -> str | None:
        if tables is not None and not re.fullmatch(r"s3://[^/]+(/.*)?", tables):
            raise ValueError(
                f"storage.tables = {tables!r} is no object store that tables can be in; set it to "
                "s3://BUCKET/PREFIX, or leave it out and set run.path"
            )
        return tables


class MachineSection(Section):
    device: str = "auto"
    """`auto` takes CUDA where there is one; or a torch device name."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads of torch on CPU; 0 leaves its own choice. On a shared machine 1 is often faster."""
    check_memory: bool = True
    """Refuse what by `videoopd plan` cannot fit into the memory that is there, before anything is
    loaded. false: try all the same."""


class ClusterSection(Section):
    """Workers on Ray for validate, rollout, score, evaluate and update, on this machine or on many;
    without the section a stage computes in its own process. How many there are changes no row."""

    workers: Positive
    """Processes that compute side by side, each with an engine of its own."""
    devices_per_worker: Positive = 1
    """Cards of one worker; several for vllm.tensor_parallel_size. On a CPU it has none, and
    machine.threads cores (one where that is 0)."""
    teacher_shards: Positive = 1
    """Processes of a worker, a card each, that hold the teacher together (FSDP2), where it is
    larger than a card and its engine is `hf`; at most devices_per_worker."""
    address: str | None = None
    """`auto` or `host:port`: a Ray cluster that is there already. None: Ray is started on this
    machine, and ends with the command."""
    dashboard: bool = False
    """Start Ray's dashboard with it, on 127.0.0.1, and say where; a cluster that is joined has its
    own."""

    @model_validator(mode="after")
    def _dashboard_is_ours(self) -> Self:
        if self.dashboard and self.address is not None:
            raise ValueError(
                "cluster.dashboard is of a Ray that starts with the command, and cluster.address "
                "names one that is there and has its own; remove cluster.dashboard"
            )
        return self

    @model_validator(mode="after")
    def _shards_have_cards(self) -> Self:
        if self.teacher_shards > self.devices_per_worker:
            raise ValueError(
                f"cluster.teacher_shards = {self.teacher_shards} needs as many cards, and "
                f"cluster.devices_per_worker is {self.devices_per_worker}; raise that, or lower "
                "cluster.teacher_shards"
            )
        return self


class TrackingSection(Section):
    """Trackers that show the run's numbers while it goes on. They are made of the tables, so that
    `videoopd track` can tell them later too, and a tracker that fails stops nothing."""

    to: tuple[Annotated[str, TRACKERS], ...] = ()
    """Which: `tensorboard`, `trackio`, `wandb`, `mlflow`; each is an extra of its own
    (`pip install "videoopd[trackio]"`) and keeps files on this machine only."""
    folder: Path | None = None
    """Where they keep them, a folder each. None: `videoopd-trackers` beside the run's folder, for
    all runs there."""
    project: str = "videoopd"
    """What groups runs in trackio, wandb and mlflow."""
    seconds: Annotated[float, Field(gt=0)] = 30.0
    """How long a command waits at its end for a tracker that is not done; then it is ended."""

    @field_validator("to", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("to")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({name for name in value if value.count(name) > 1})
        if twice:
            raise ValueError(f"tracking.to names {', '.join(twice)} twice; once is enough")
        return value


class VLLMSection(Section):
    """Settings of every stage whose engine is vLLM."""

    tensor_parallel_size: Positive = 1
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Share of each GPU. The rest is for the gate: the student once more, in the trainer."""
    dtype: Dtype | None = None
    """None: that of the model."""
    max_model_len: Positive | None = None
    """Tokens of prompt and answer; None: as many as [video] and the answer can need."""
    kv_cache_gib: Annotated[float, Field(gt=0)] | None = None
    """Instead of what gpu_memory_utilization leaves; on CPU 1 where it is not given."""
    enforce_eager: bool = False
    """No CUDA graphs and no compiler: a quick start, slower tokens. Always so on CPU."""
    normalize_on_device: bool = False
    """Sends uint8 pixels, which vLLM then normalises with the image processor's mean and std."""
    lora: Literal["merged", "adapter"] = "merged"
    """How a LoRA policy is served."""
