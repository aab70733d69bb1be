"""The plan of a config: each stage with its memory and work, what does not fit, and what would."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from opd_core.config.load import Config
from opd_core.focus.select import needs_predictions
from opd_core.hub.cache import known_folder
from opd_core.plan.beside import Beside, beside
from opd_core.plan.cards import Card
from opd_core.plan.lengths import Annotations, Lengths, words_of
from opd_core.plan.memory import STAGES, Setting, StageMemory, answers_of_teacher, stage_memory
from opd_core.plan.parameters import Parameters, parameters_of
from opd_core.plan.remedies import Change, remedy
from opd_core.plan.shapes import ModelShape, shape_in
from opd_core.plan.work import Disk, StageWork, disk, scores, stage_work, together


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the config."""

    path: str
    shape: ModelShape
    parameters: Parameters
    published: str | None
    """The published model whose shape stands for it, because nothing is in its folder."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    stage: str
    memory: StageMemory
    work: StageWork | None
    """None where how much it has to do is not known."""
    hours: float | None
    fits: bool
    remedy: Change | None
    """What to set so that it fits; None where it does, or nothing known makes it."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a run is to run on."""

    card: Card | None
    """None: the CPU."""
    ram: float | None
    """Bytes of the CPU's memory; None: not known, and so not held against anything."""
    devices: int = 1

    def fits(self, memory: StageMemory) -> bool:
        if self.card is None:
            return self.ram is None or memory.on_device + memory.on_host <= self.ram
        on_host = self.ram is None or memory.on_host <= self.ram
        return memory.on_device <= self.card.memory and on_host


@dataclass(frozen=True, slots=True)
class Plan:
    student: Model
    teacher: Model
    """Of several the first."""
    other_teachers: tuple[Model, ...]
    machine: Machine
    mfu: float
    from_annotations: bool
    """Whether lengths are those of the annotated videos, and not only the budgets of [video]."""
    vision_tokens: float
    """Of a video, on average,"""
    prompt_tokens: float
    """of a prompt,"""
    answer_tokens: float
    """of an answer that is only its span."""
    stages: tuple[StagePlan, ...]
    disk: Disk
    beside: tuple[Beside, ...]
    """What many cards wait for; none of one card, or where hours are not known."""

    @property
    def fits(self) -> bool:
        return all(stage.fits for stage in self.stages)


def plan(
    config: Config,
    machine: Machine,
    *,
    mfu: float = 0.4,
    annotations: Annotations | None = None,
    evaluated: int | None = None,
    count: Callable[[str], int] = words_of,
    stages: Iterable[str] = STAGES,
    remedies: bool = True,
    shares: Sequence[float] | None = None,
) -> Plan:
    """The plan of a config on a machine.

    `mfu`: the share of the card's peak that is reached. `annotations`: of the training split, where
    they are at hand; `evaluated`: examples of the eval split. `count`: tokens of a text. `stages`:
    these only. `remedies`: whether it is asked what would make fit what does not. `shares`: what
    part of the examples is whose, of several teachers; None: not known, so all are taken to be the
    one's whose work is the largest. Raises
    `VideoOPDError` where the shape of a model cannot be told.
    """
    student = _model(config.student.path)
    teachers = [_model(teacher.path) for teacher in config.all_teachers]
    each = [
        Setting(
            alone,
            student.shape,
            teacher.shape,
            Lengths(alone, student.shape, annotations, count),
            machine.card is None,
            machine.devices,
            evaluated,
        )
        for alone, teacher in zip(config.of_each_teacher(), teachers, strict=True)
    ]
    setting = max(each, key=lambda one: one.teacher.text.hidden)
    done = [s for s in STAGES if s in set(stages) and takes_part(setting, s)]
    lengths = setting.lengths
    planned = tuple(_stage(config, each, shares, machine, mfu, stage, remedies) for stage in done)
    return Plan(
        student=student,
        teacher=teachers[0],
        other_teachers=tuple(teachers[1:]),
        machine=machine,
        mfu=mfu,
        from_annotations=annotations is not None,
        vision_tokens=lengths.mean.vision,
        prompt_tokens=lengths.mean.tokens + sum(lengths.question),
        answer_tokens=lengths.answer,
        stages=planned,
        disk=disk(setting),
        beside=_beside(setting, planned),
    )


def _beside(setting: Setting, stages: Iterable[StagePlan]) -> tuple[Beside, ...]:
    known = {s.stage: (s.work, s.hours) for s in stages}
    work = {stage: w for stage, (w, h) in known.items() if w is not None and h is not None}
    hours = {stage: h for stage, (w, h) in known.items() if w is not None and h is not None}
    if setting.devices == 1 or not work:
        return ()
    return tuple(beside(setting, work, hours))


def takes_part(setting: Setting, stage: str) -> bool:
    """Whether rounds of the config have this stage at all."""
    config = setting.config
    if stage == "validate":
        return needs_predictions(config.focus)
    if stage == "score":
        return scores(setting)
    return stage != "rollout" or config.rollout.source != "truth"


def _stage(
    config: Config,
    settings: Sequence[Setting],
    shares: Sequence[float] | None,
    machine: Machine,
    mfu: float,
    stage: str,
    remedies: bool,
) -> StagePlan:
    """`settings`: of the config with each of its teachers, which a stage opens one after the
    other."""
    if not answers_of_teacher(config, stage):
        settings, shares = settings[:1], None
    memories = [stage_memory(setting, stage) for setting in settings]
    largest = max(range(len(settings)), key=lambda n: memories[n].on_device + memories[n].on_host)
    setting, memory = settings[largest], memories[largest]
    work = together([stage_work(setting, stage) for setting in settings], shares)
    hours = None
    if work is not None and machine.card is not None:
        hours = work.hours(machine.card, mfu, machine.devices)
    fits = machine.fits(memory)
    change = None
    if not fits and remedies:

        def would_fit(config: Config) -> bool:
            lengths = replace(setting.lengths, config=config)
            changed = replace(setting, config=config, lengths=lengths)
            return machine.fits(stage_memory(changed, stage))

        change = remedy(setting.config, stage, would_fit)
        if change is not None and config.teachers:
            name = f"teachers.{config.teachers[largest].name}."
            change = {key.replace("teacher.", name): value for key, value in change.items()}
    return StagePlan(stage, memory, work, hours, fits, change)


def _model(path: Path) -> Model:
    shape, known = shape_in(known_folder(path))
    return Model(str(path), shape, parameters_of(shape), known)
