"""What each stage has in memory at its worst moment, part by part."""

from __future__ import annotations

import math
from dataclasses import dataclass

from opd_core.config.load import Config
from opd_core.extensions import OBJECTIVES, TRAINER
from opd_core.plan.activations import (
    FLOAT32,
    HEAD_COPIES,
    Pass,
    Precision,
    Trained,
    passing,
    saved,
)
from opd_core.plan.lengths import Lengths
from opd_core.plan.packs import Pack, packed
from opd_core.plan.parameters import lora_parameters, parameters_of
from opd_core.plan.shapes import ModelShape

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PREFILL_TOKENS = 16_384
"""Of a pack of prompts that are to be answered, in the engine `hf` (a test compares)."""
DRAW_BYTES = 32
"""A token that could be said, while one is drawn in float64."""
QUANTISED = {"fp8": 1.0, "int4": 0.5 + 4 / 128}
"""Bytes of a weight of the language model's layers under `teacher.quantise`."""
MOMENTS = {"adamw": 8.0, "adamw_8bit": 2 * (1 + 4 / 256), "adamw_4bit": 2 * (0.5 + 4 / 128)}
"""Bytes of both moments of a trained number; torchao has a float32 scale a block."""
STEPPED_TOGETHER = 1 << 26
"""Trained numbers that are stepped at a time where they are no float32 weights on the device."""
STEP_BYTES = 10
"""Of each of them meanwhile: its float32 weight and gradient."""
MATRIX_STEP_BYTES = 14
"""Beside these, of the largest matrix among them: what the step of one computes."""
PROGRAM = 0.7e9
"""Python, torch, transformers and their libraries in the memory of the CPU."""
CUDA_LIBRARIES = 2.3e9
CONTEXT = 0.6e9
"""CUDA's own, its kernels and libraries, on the device."""
FRAGMENTS = 0.05
"""Of what comes and goes: what the allocator of CUDA holds and cannot use."""
CACHED_FRAMES = 4 << 30
"""Bytes of decoded videos that a process keeps at most (a test compares)."""


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    bytes: float


@dataclass(frozen=True, slots=True)
class StageMemory:
    stage: str
    device: tuple[Part, ...]
    host: tuple[Part, ...]
    """In the memory of the CPU; where that is the device, beside `device`."""

    @property
    def on_device(self) -> float:
        return sum(part.bytes for part in self.device)

    @property
    def on_host(self) -> float:
        return sum(part.bytes for part in self.host)


@dataclass(frozen=True, slots=True)
class Training:
    """In which types the weights of an update lie, and where (`opd_core/update/in_memory.py`)."""

    parameters: int
    """Numbers that are trained."""
    frozen: int
    trained_bytes: int
    """Of a trained weight, and of its gradient, on the device."""
    served_bytes: int
    moments_bytes: float
    offload: bool
    float32_weights: bool
    """Whether a float32 weight is kept of each trained one: on the device it is that weight."""

    @property
    def autocast(self) -> bool:
        return self.trained_bytes != self.served_bytes

    @property
    def masters(self) -> float:
        """Bytes of float32 weights beside those on the device."""
        return 4.0 * self.parameters if self.offload else 0.0

    @property
    def state(self) -> float:
        """Bytes of the optimiser's state."""
        return self.moments_bytes * self.parameters


def training_of(config: Config, shape: ModelShape) -> Training:
    update, numbers = config.update, parameters_of(shape)
    served = BYTES[config.student.dtype]
    if update.lora is not None:
        modules = frozenset(update.lora.target_modules or shape.family.lora_modules)
        trained = lora_parameters(shape, update.lora.rank, modules)
        frozen = numbers.all
    else:
        trained = numbers.language if update.freeze_vision else numbers.all
        frozen = numbers.all - trained
    return Training(
        parameters=trained,
        frozen=frozen,
        trained_bytes=served if update.offload else BYTES[update.weights],
        served_bytes=served,
        moments_bytes=MOMENTS[update.optimizer],
        offload=update.offload,
        float32_weights=update.weights == "float32",
    )


@dataclass(frozen=True)
class Setting:
    """What the memory and the work of all stages depend on."""

    config: Config
    student: ModelShape
    teacher: ModelShape
    lengths: Lengths
    on_cpu: bool
    devices: int = 1
    """Processes with a device each, over which an update is sharded and the other stages deal out
    their videos."""
    eval_split: int | None = None
    """Its examples, where they are known."""

    @property
    def evaluated(self) -> int | None:
        """Examples that an evaluation answers; None where nobody knows."""
        known = (self.config.evaluate.max_examples, self.eval_split)
        return min((n for n in known if n is not None), default=None)


def stage_memory(setting: Setting, stage: str) -> StageMemory:
    """The memory of a stage, of one of `setting.devices` processes."""
    config = setting.config
    rollout, evaluate, teacher = config.rollout, config.evaluate, config.teacher
    prompts = min(rollout.prompts_per_batch, setting.lengths.drawn)
    match stage:
        case "validate":
            asked = Asked(teacher.engine, teacher.predictions, prompts, rollout.max_new_tokens)
            return _sampling(setting, stage, asked)
        case "rollout":
            asked = Asked(rollout.engine, rollout.rollouts_per_example, prompts,
                          rollout.max_new_tokens)  # fmt: skip
            return _sampling(setting, stage, asked)
        case "evaluate":
            prompts = evaluate.prompts_per_batch
            prompts = min(prompts, setting.evaluated or prompts)
            asked = Asked(evaluate.engine, 1, prompts, evaluate.max_new_tokens)
            return _sampling(setting, stage, asked)
        case "score":
            return _score(setting)
        case _:
            return update_memory(setting)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a stage samples."""

    engine: str
    answers: int
    """Of a prompt."""
    prompts: int
    """Together."""
    new_tokens: int
    """At most."""


def answers_of_teacher(config: Config, stage: str) -> bool:
    """Whether the teacher is the model of a stage."""
    return stage in ("validate", "score") or (
        stage == "rollout" and config.rollout.source == "teacher"
    )


def _sampling(setting: Setting, stage: str, asked: Asked) -> StageMemory:
    teachers = answers_of_teacher(setting.config, stage)
    shape = setting.teacher if teachers else setting.student
    weights, this = _frozen(setting, teachers)
    lengths = setting.lengths
    sentences = min(lengths.sentences, asked.prompts)
    videos = asked.prompts / sentences
    tree = lengths.tree(lengths.longest, sentences, 0)
    length = tree.shared + tree.own
    cache = cache_bytes(shape, this.precision.compute)
    if asked.engine != TRAINER:
        parts = _served(setting, stage, this, weights, length + asked.new_tokens)
        return StageMemory(stage, _there(parts), _on_host(setting, shape, weights, videos))
    pack = packed(tree, videos, PREFILL_TOKENS)
    answers, text = asked.prompts * asked.answers, shape.text
    filled = pack.tokens * cache
    copies = pack.trees * pack.tree.sentences * length * cache  # a prompt's own, after the pass
    reading = filled + max(passing(this, pack) - copies, 0.0)
    held = asked.prompts * length * cache
    writing = held / text.layers + answers * asked.new_tokens * cache  # prompts that end leave
    writing += answers * text.heads * (length + asked.new_tokens) * (3 * FLOAT32)
    writing += answers * text.vocabulary * (FLOAT32 + DRAW_BYTES)
    parts = [
        Part("weights", weights),
        Part("keys and values of prompts", held),
        Part("reading prompts, or writing answers",
             max(reading, writing) + _unpacked(setting, teachers)),
    ]  # fmt: skip
    return StageMemory(stage, _on_device(setting, parts, fixed=1),
                       _on_host(setting, shape, weights, videos))  # fmt: skip


def _served(setting: Setting, stage: str, this: Pass, weights: float, longest: float) -> list[Part]:
    """Of a device on which another engine takes its share, and the gate what that leaves."""
    engine, lengths = setting.config.vllm, setting.lengths
    over = engine.tensor_parallel_size
    one = lengths.tree(lengths.longest, 1, 0)
    cache = longest * cache_bytes(this.shape, this.precision.compute)
    work = passing(this, Pack(one, 1))
    inside = (weights + cache + work) / over
    gated = stage == "rollout" and not answers_of_teacher(setting.config, stage)
    gate = weights + work if gated else 0.0
    share = engine.gpu_memory_utilization
    whole = max(inside / share, gate / (1 - share) if share < 1 else 0.0)
    return [
        Part("weights", weights / over),
        Part("keys and values of one prompt", cache / over),
        Part("reading a prompt", work / over),
        Part("outside the engine's share", whole - inside),
    ]


def _score(setting: Setting) -> StageMemory:
    config, lengths = setting.config, setting.lengths
    weights, this = _frozen(setting, teacher=True)
    rollouts = config.rollout.rollouts_per_example
    together = config.score.prompts_per_batch
    sentences = min(lengths.sentences, together)
    videos = together / sentences
    tree = lengths.tree(lengths.longest, sentences, rollouts)
    host = _on_host(setting, setting.teacher, weights, videos)
    if config.teacher.engine != TRAINER:
        parts = _served(setting, "score", this, weights, tree.shared + tree.own + tree.answer)
        return StageMemory("score", _there(parts), host)
    pack = packed(tree, videos, config.update.max_tokens_per_pack)
    rows = min(pack.answers, config.update.completion_rows_per_chunk + tree.answer)
    copies = HEAD_COPIES + (1 if config.score.teacher_topk else 0)
    logits = rows * this.shape.text.vocabulary * copies * FLOAT32
    logits += pack.tokens * this.shape.text.hidden * this.precision.residual
    parts = [
        Part("weights", weights),
        Part("activations, or logits", max(passing(this, pack) + _unpacked(setting, True), logits)),
    ]
    return StageMemory("score", _on_device(setting, parts, fixed=1), host)


def update_memory(setting: Setting) -> StageMemory:
    config, shape, lengths = setting.config, setting.student, setting.lengths
    update, numbers = config.update, parameters_of(shape)
    training, this = training_of(config, shape), update_pass(setting)
    text, over = shape.text, setting.devices
    step = min(update.examples_per_step, lengths.drawn)
    together = max(1.0, step / over)
    sentences = min(lengths.sentences, together)
    videos = max(1.0, together / sentences)
    tree = lengths.tree(lengths.longest, sentences, config.rollout.rollouts_per_example)
    pack = packed(tree, videos, update.max_tokens_per_pack)
    rows = min(pack.answers, update.completion_rows_per_chunk + tree.answer)
    kept = rows * text.vocabulary * FLOAT32 * _logits_kept(config)
    logits = kept + rows * text.vocabulary * HEAD_COPIES * FLOAT32
    cast = 0.0
    if training.autocast and update.lora is None and over == 1:
        cast = float(training.served_bytes * (numbers.layers + numbers.embedding))
    activations = saved(this, pack)
    worst = max(
        passing(this, pack) + kept + cast,
        activations + logits + cast,
        _stepping(training, numbers.largest, setting.on_cpu) / over,
    )
    trained = float(training.parameters * training.trained_bytes)
    frozen = float(training.frozen * training.served_bytes)
    gathered = 0.0
    if over > 1:
        gathered = _gathered(shape, training.served_bytes)
    parts = [
        Part("weights", (trained + frozen) / over),
        Part("gradients", trained / over),
        Part("optimiser's state", 0.0 if training.offload else training.state / over),
        Part("weights gathered", gathered),
        Part("reference", _reference(setting) / over),
        Part("saved activations", activations),
        Part("logits", kept),
        Part("weights as they are cast", cast),
        Part("a layer, or a step", worst - activations - kept - cast),
    ]
    opened = FLOAT32 if training.float32_weights and update.lora is None else training.served_bytes
    beside = [
        Part("weights before the update", training.parameters * training.served_bytes / over),
        Part("float32 weights", training.masters / over),
        Part("optimiser's state", training.state / over if training.offload else 0.0),
    ]
    host = _on_host(setting, shape, float(numbers.all * opened), videos)
    return StageMemory("update", _on_device(setting, parts, fixed=5), (*host, *_there(beside)))


def update_pass(setting: Setting) -> Pass:
    """The forward and backward pass of the config's update."""
    update = setting.config.update
    training = training_of(setting.config, setting.student)
    adapter = update.lora is not None
    residual = training.served_bytes if adapter else training.trained_bytes
    trained: Trained = "language" if update.freeze_vision else "all"
    return Pass(
        setting.student,
        Precision(residual, training.served_bytes, training.autocast),
        "adapter" if adapter else trained,
        float(update.gradient_checkpointing),
        setting.on_cpu,
    )


def _gathered(shape: ModelShape, size: int) -> float:
    """Bytes of a sharded model that are there as a whole: the embedding always, two layers at a
    time."""
    numbers = parameters_of(shape)
    return size * (numbers.embedding + 2 * numbers.layers / shape.text.layers)


def _reference(setting: Setting) -> float:
    config = setting.config
    asked = (OBJECTIVES[name].reference for name in config.objective_weights)
    needed = any(reference(config.update) for reference in asked if reference is not None)
    return weights_bytes(config, setting.student, teacher=False) if needed else 0.0


def _logits_kept(config: Config) -> int:
    """[rows, V] float32 numbers that the loss of a chunk keeps for its backward pass."""
    whole = any(OBJECTIVES[n].needs_distribution for n in config.objective_weights)
    return 1 + (2 if whole else 0) + (2 if config.update.entropy_weight else 0)


def _stepping(training: Training, largest: int, on_cpu: bool) -> float:
    """Bytes that a step of the optimiser needs meanwhile on the device."""
    if training.offload:
        return float(STEPPED_TOGETHER * 2 * FLOAT32)
    if training.float32_weights and training.moments_bytes == MOMENTS["adamw"]:
        # torch steps all weights together on CUDA, one after the other on a CPU.
        return 0.0 if on_cpu else float(training.parameters * FLOAT32)
    together = min(STEPPED_TOGETHER, training.parameters)
    return float(together * STEP_BYTES + min(together, largest) * MATRIX_STEP_BYTES)


def cache_bytes(shape: ModelShape, size: int) -> int:
    """Of the keys and values of a token."""
    return 2 * shape.text.keys * shape.text.layers * size


def _frozen(setting: Setting, teacher: bool) -> tuple[float, Pass]:
    """Bytes of a model that is not trained, on one device, and its pass."""
    config, shape = setting.config, setting.teacher if teacher else setting.student
    size = BYTES[(config.teacher if teacher else config.student).dtype]
    this = Pass(shape, Precision(size, size), "nothing", False, setting.on_cpu)
    held = weights_bytes(config, shape, teacher)
    shards = 1 if config.cluster is None else config.cluster.teacher_shards
    if teacher and shards > 1 and not setting.on_cpu:
        held = held / shards + _gathered(shape, size)
    return held, this


def weights_bytes(config: Config, shape: ModelShape, teacher: bool) -> float:
    """Bytes of a model as it is sampled from, or scores."""
    numbers = parameters_of(shape)
    size = BYTES[(config.teacher if teacher else config.student).dtype]
    quantised = QUANTISED.get(config.teacher.quantise, size) if teacher else size
    return numbers.layers * quantised + (numbers.all - numbers.layers) * size


def _unpacked(setting: Setting, teacher: bool) -> float:
    """Bytes of a quantised matrix that is brought back to be multiplied."""
    if not teacher or setting.config.teacher.quantise == "none":
        return 0.0
    text = setting.teacher.text
    return float(text.hidden * text.inner * (FLOAT32 + BYTES[setting.config.teacher.dtype]))


def _there(parts: list[Part]) -> tuple[Part, ...]:
    return tuple(part for part in parts if part.bytes > 0)


def _on_device(setting: Setting, parts: list[Part], fixed: int) -> tuple[Part, ...]:
    """With what CUDA takes for itself; the first `fixed` parts stay for the whole stage."""
    if not setting.on_cpu:
        moving = sum(part.bytes for part in parts[fixed:])
        parts = [*parts, Part("CUDA's own, and gaps", CONTEXT + FRAGMENTS * moving)]
    return _there(parts)


def _on_host(
    setting: Setting, shape: ModelShape, weights: float, videos: float
) -> tuple[Part, ...]:
    config, tower = setting.config, shape.tower
    vision, known = setting.lengths.longest.vision, setting.lengths.annotations
    pixels = math.ceil(videos) * vision * tower.patches * tower.pixels * FLOAT32
    cached = config.video.cached_videos
    cached = min(cached, len(known.seconds)) if known else cached
    frames = min(CACHED_FRAMES, cached * tower.frame_bytes * vision)
    parts = [
        Part("the program", PROGRAM if setting.on_cpu else PROGRAM + CUDA_LIBRARIES),
        Part("weights on their way", 0.0 if setting.on_cpu else weights),
        Part("pixels of a batch", float(pixels)),
        Part("decoded videos", float(frames)),
    ]
    return _there(parts)


STAGES = ("validate", "rollout", "score", "update", "evaluate")
