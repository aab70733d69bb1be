"""`videoopd plan`: the machine that is asked about, and the lengths that the annotations tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from opd_core.plan.cards import Card, card
from opd_core.plan.plan import Machine, Plan, plan
from opd_core.plan.present import present_card, ram
from opd_core.plan.tokens import counter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opd_core.config.load import Config
    from opd_core.types import GroundingExample


def machine_of(
    config: Config, gpu: str | None, memory_gib: float | None, devices: int = 1
) -> Machine:
    """The card of that name and memory; else what `machine.device` will be here."""
    if gpu is not None or (memory_gib is not None and config.machine.device != "cpu"):
        asked = Card("a card", 0.0, None, None) if gpu is None else card(gpu)
        if memory_gib is not None:
            asked = replace(asked, memory=memory_gib * 2**30)
        return Machine(asked, None, devices)
    if memory_gib is not None:
        return Machine(None, memory_gib * 2**30, devices)
    return Machine(present_card(config.machine.device), ram(), devices)


def plan_of(config: Config, machine: Machine, mfu: float = 0.4) -> Plan:
    """The plan of a config, with the lengths of its annotated videos where their files are there
    and the tokens of the student's own vocabulary where its folder has one."""
    from opd_core.plan.lengths import Annotations

    count = counter(config.student.path)
    evaluated = None
    if config.data.eval.is_file():
        evaluated = sum(1 for _ in _examples(config.data.eval, "eval"))
    annotations = None
    if config.data.train.is_file():
        annotations = Annotations.of(_examples(config.data.train, "train"), count)
    return plan(
        config, machine, mfu=mfu, annotations=annotations, evaluated=evaluated, count=count
    )


def _examples(file: Path, split: str) -> Iterator[GroundingExample]:
    from opd_core.annotations.timelens import read_timelens
    from opd_core.types import GroundingExample

    return (e for e in read_timelens(file, split) if isinstance(e, GroundingExample))
