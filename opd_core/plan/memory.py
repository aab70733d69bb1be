"""What each stage has in memory at its worst moment, part by part."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from opd_core.config.load import Config
from opd_core.extensions import OBJECTIVES, TRAINER
from opd_core.plan.activations import (
    FLOAT32,
    HEAD_COPIES,
    Pass,
    Precision,
    saved,
    saved_by_layer,
    working,
)
from opd_core.plan.lengths import Lengths
from opd_core.plan.packs import Pack, Tree, packed
from opd_core.plan.parameters import Parameters, lora_parameters, parameters_of
from opd_core.plan.shapes import ModelShape

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PREFILL_TOKENS = 16_384
"""Of a pack of prompts that are to be answered, in the engine `hf` (a test compares)."""
SCORED_TOGETHER = 32
"""Videos that are scored together (a test compares)."""
DRAW_BYTES = 32
"""A token that could be said, while one is drawn in float64."""
MOMENTS = {"adamw": 8.0, "adamw_8bit": 2 * (1 + 4 / 256), "adamw_4bit": 2 * (0.5 + 4 / 128)}
"""Bytes of both moments of a trained number; torchao has a float32 scale a block."""
STEPPED_TOGETHER = 1 << 26
"""Trained numbers that are stepped at a time where they are no float32 weights on the device."""
STEP_BYTES = 24
"""Of each of them meanwhile: its float32 weight and gradient, and what the step computes."""
PROGRAM = 1.0e9
"""Python, torch, transformers and their libraries in the memory of the CPU."""
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
        trained_bytes=served if getattr(update,"offload",False) else BYTES[getattr(update,"weights","float32")],
        served_bytes=served,
        moments_bytes=MOMENTS[getattr(update,"optimizer","adamw")],
        offload=getattr(update,"offload",False),
        float32_weights=getattr(update,"weights","float32") == "float32",
    )


@dataclass(frozen=True, slots=True)
class Setting:
    """What the memory of all stages depends on."""

    config: Config
    student: ModelShape
    teacher: ModelShape
    lengths: Lengths
    on_cpu: bool


def stage_memory(setting: Setting, stage: str) -> StageMemory:
    """The memory of a stage: `validate`, `rollout`, `score`, `update` or `evaluate`."""
    return _STAGES[stage](setting)


def _validate(setting: Setting) -> StageMemory:
    config = setting.config
    return _sampling(setting, "validate", config.teacher.engine, config.teacher.predictions,
                     config.rollout.prompts_per_batch, config.rollout.max_new_tokens)  # fmt: skip


def _rollout(setting: Setting) -> StageMemory:
    rollout = setting.config.rollout
    return _sampling(setting, "rollout", rollout.engine, rollout.rollouts_per_example,
                     rollout.prompts_per_batch, rollout.max_new_tokens)  # fmt: skip


def _evaluate(setting: Setting) -> StageMemory:
    evaluate = setting.config.evaluate
    return _sampling(setting, "evaluate", evaluate.engine, 1, evaluate.prompts_per_batch,
                     evaluate.max_new_tokens)  # fmt: skip


def _is_teachers(config: Config, stage: str) -> bool:
    return stage in ("validate", "score") or (
        stage == "rollout" and config.rollout.source == "teacher"
    )


def _sampling(
    setting: Setting, stage: str, engine: str, rows: int, prompts: int, new_tokens: int
) -> StageMemory:
    config, lengths = setting.config, setting.lengths
    teachers = _is_teachers(config, stage)
    shape = setting.teacher if teachers else setting.student
    weights, this = _frozen(setting, teachers)
    size, text = this.precision.compute, shape.text
    cache = 2 * text.keys * text.layers * size  # of a token
    sentences = min(lengths.sentences, prompts)
    tree = lengths.tree(lengths.longest, sentences, 0)
    length = tree.shared + tree.own
    pack = packed(tree, math.ceil(prompts / sentences), PREFILL_TOKENS)
    held = prompts * length * cache
    filling = pack.tokens * cache + _passing(this, pack)
    answers = prompts * rows
    repeated = 2 * text.queries * size if text.kv_heads < text.heads else 0
    decoding = answers * new_tokens * cache
    decoding += prompts * length * repeated
    decoding += answers * text.heads * (length + new_tokens) * (3 * FLOAT32 + size)
    saying = answers * text.vocabulary * (FLOAT32 + DRAW_BYTES)
    parts = [
        Part("weights", weights),
        Part("keys and values", held),
        Part("decoding, or reading prompts", max(filling, decoding + saying)),
    ]
    return StageMemory(stage, _on_device(setting, parts, fixed=1),
                       _on_host(setting, weights, math.ceil(prompts / sentences)))  # fmt: skip


def _score(setting: Setting) -> StageMemory:
    config, lengths = setting.config, setting.lengths
    weights, this = _frozen(setting, teacher=True)
    tree = lengths.tree(lengths.longest, lengths.sentences, config.rollout.rollouts_per_example)
    pack = packed(tree, SCORED_TOGETHER, config.update.max_tokens_per_pack)
    rows = min(pack.answers, config.update.completion_rows_per_chunk + tree.answer)
    copies = HEAD_COPIES + (1 if config.score.teacher_topk else 0)
    logits = rows * this.shape.text.vocabulary * copies * FLOAT32
    parts = [
        Part("weights", weights),
        Part("activations", max(_passing(this, pack), 0)),
        Part("logits", logits),
    ]
    return StageMemory("score", _on_device(setting, parts, fixed=1),
                       _on_host(setting, weights, SCORED_TOGETHER))  # fmt: skip


def _update(setting: Setting) -> StageMemory:
    config, shape, lengths = setting.config, setting.student, setting.lengths
    update, text = config.update, shape.text
    training = training_of(config, shape)
    adapter = update.lora is not None
    residual = training.served_bytes if adapter else training.trained_bytes
    this = Pass(
        shape,
        Precision(residual, training.served_bytes, training.autocast),
        "adapter" if adapter else ("language" if update.freeze_vision else "all"),
        update.gradient_checkpointing,
        setting.on_cpu,
    )
    sentences = min(lengths.sentences, update.examples_per_step)
    tree = lengths.tree(lengths.longest, sentences, config.rollout.rollouts_per_example)
    videos = math.ceil(update.examples_per_step / sentences)
    pack = packed(tree, videos, update.max_tokens_per_pack)
    rows = min(pack.answers, update.completion_rows_per_chunk + tree.answer)
    kept_logits = pack.answers * text.vocabulary * FLOAT32 * _logits_kept(config)
    logits = kept_logits + rows * text.vocabulary * HEAD_COPIES * FLOAT32
    backward = saved_by_layer(this, pack) if update.gradient_checkpointing else 0.0
    passing = working(this, pack) + backward
    cast = 0.0
    if training.autocast and not adapter:
        cast = float(training.served_bytes * (parameters_of(shape).layers + text.vocabulary * text.hidden))
    activations = saved(this, pack)
    stepping = _stepping(training, setting.on_cpu)
    moving = max(activations + cast + max(passing + kept_logits, logits), stepping)
    reference = _reference(setting)
    parts = [
        Part("weights", float(training.parameters * training.trained_bytes
                              + training.frozen * training.served_bytes)),
        Part("gradients", float(training.parameters * training.trained_bytes)),
        Part("optimiser's state", 0.0 if training.offload else training.state),
        Part("reference", reference),
        Part("activations", activations),
        Part("weights as they are cast", cast),
        Part("logits", logits if activations + cast + logits >= moving - 1 else kept_logits),
    ]  # fmt: skip
    parts.append(Part("one layer, or a step", moving - sum(p.bytes for p in parts[4:])))
    host = _on_host(setting, training.trained_bytes * shape_numbers(shape), videos)
    beside = [Part("float32 weights", training.masters)]
    if training.offload:
        beside.append(Part("optimiser's state", training.state))
    return StageMemory("update", _on_device(setting, parts, fixed=4), (*host, *_there(beside)))


def shape_numbers(shape: ModelShape) -> int:
    return parameters_of(shape).all


def _reference(setting: Setting) -> float:
    config = setting.config
    asked = (OBJECTIVES[name].reference for name in config.objective_weights)
    needed = any(reference(config.update) for reference in asked if reference is not None)
    return float(shape_numbers(setting.student) * BYTES[config.student.dtype]) if needed else 0.0


def _logits_kept(config: Config) -> int:
    """[tokens, V] float32 numbers that the loss of a pack keeps for its backward pass."""
    whole = any(OBJECTIVES[n].needs_distribution for n in config.objective_weights)
    return 1 + (2 if whole else 0) + (2 if config.update.entropy_weight else 0)


def _stepping(training: Training, on_cpu: bool) -> float:
    """Bytes that a step of the optimiser needs meanwhile on the device."""
    if training.offload:
        return float(STEPPED_TOGETHER * 2 * FLOAT32)
    if not training.float32_weights:
        return float(min(STEPPED_TOGETHER, training.parameters) * STEP_BYTES)
    if training.moments_bytes < MOMENTS["adamw"]:
        return float(min(STEPPED_TOGETHER, training.parameters) * STEP_BYTES)
    # torch steps all weights together on CUDA, one after the other on a CPU.
    return 0.0 if on_cpu else float(training.parameters * FLOAT32)


def _frozen(setting: Setting, teacher: bool) -> tuple[float, Pass]:
    """Bytes of a model that is not trained, and its pass."""
    model = setting.config.teacher if teacher else setting.config.student
    shape = setting.teacher if teacher else setting.student
    size = BYTES[model.dtype]
    this = Pass(shape, Precision(size, size), "nothing", False, setting.on_cpu)
    return float(weights_bytes(setting.config, shape, teacher)), this


def weights_bytes(config: Config, shape: ModelShape, teacher: bool) -> float:
    """Bytes of a model as it is sampled from or scores."""
    numbers = parameters_of(shape)
    size = BYTES[(config.teacher if teacher else config.student).dtype]
    return float(numbers.all * size)


def _passing(this: Pass, pack: Pack) -> float:
    return working(this, pack)


def _there(parts: list[Part]) -> tuple[Part, ...]:
    return tuple(part for part in parts if part.bytes > 0)


def _on_device(setting: Setting, parts: list[Part], fixed: int) -> tuple[Part, ...]:
    """With what CUDA takes for itself; the first `fixed` parts stay for the whole stage."""
    if not setting.on_cpu:
        moving = sum(part.bytes for part in parts[fixed:])
        parts = [*parts, Part("CUDA's own, and gaps", CONTEXT + FRAGMENTS * moving)]
    return _there(parts)


def _on_host(setting: Setting, weights: float, videos: float) -> tuple[Part, ...]:
    config, lengths, tower = setting.config, setting.lengths, setting.student.tower
    vision = lengths.longest.vision
    patches = tower.patches * tower.pixels * FLOAT32 * vision
    frames = min(CACHED_FRAMES, config.video.cached_videos * tower.frame_bytes * vision)
    parts = [
        Part("the program", PROGRAM),
        Part("weights on their way", 0.0 if setting.on_cpu else weights),
        Part("pixels of a batch", videos * patches),
        Part("decoded videos", float(frames)),
    ]
    return _there(parts)


_STAGES: dict[str, Callable[[Setting], StageMemory]] = {
    "validate": _validate,
    "rollout": _rollout,
    "score": _score,
    "update": _update,
    "evaluate": _evaluate,
}
STAGES = tuple(_STAGES)
