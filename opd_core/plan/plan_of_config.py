"""A plan for this machine, or another one, with the lengths that the annotations tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from opd_core.config.load import Config
from opd_core.config.sections import TakesSection
from opd_core.hub.cache import known_folder
from opd_core.plan.cards import Card, card
from opd_core.plan.lengths import Annotations
from opd_core.plan.memory import STAGES
from opd_core.plan.plan import Machine, Plan, plan
from opd_core.plan.present import is_cpu, present_card, ram
from opd_core.plan.tokens import counter
from opd_core.types import VideoOPDError

if TYPE_CHECKING:
    from opd_core.types import GroundingExample


def this_machine(config: Config, devices: int | None = None) -> Machine | None:
    """Where the config runs here; None where it names a device whose memory is not known. The
    workers of `[cluster]` have cards like this one; on a CPU all share its memory. Of machines that
    have cards where this one has none (the head of a cluster that is there) nothing is known."""
    device, cluster = config.machine.device, config.cluster
    card = present_card(device)
    is_head = cluster is not None and cluster.address is not None and device != "cpu"
    if card is None and (is_head or not is_cpu(device)):
        return None
    return Machine(card, ram(), devices or (1 if card is None else _cards(config)))


def _cards(config: Config) -> int:
    """That the config takes together."""
    cluster = config.cluster
    return 1 if cluster is None else cluster.workers * cluster.devices_per_worker


def machine_asked(
    config: Config, gpu: str | None, memory_gib: float | None, devices: int | None = None
) -> Machine:
    """The card of that name, with that memory; without either what is here. `devices`: so many;
    None: those of `[cluster]`, else one. Raises `VideoOPDError` for a card that is not known."""
    memory = None if memory_gib is None else memory_gib * 2**30
    cards = devices or _cards(config)
    if gpu is not None:
        asked = card(gpu)
        return Machine(asked if memory is None else replace(asked, memory=memory), None, cards)
    here = this_machine(config, devices)
    if memory is not None:
        if here is not None and here.card is not None:
            return replace(here, card=replace(here.card, memory=memory))
        if config.machine.device == "cpu":
            return Machine(None, memory, devices or 1)
        return Machine(Card("a card", memory, None, None), None, cards)
    if here is None:
        raise VideoOPDError(
            f"machine.device = {config.machine.device!r} is not here; say for what the plan is, "
            "with --gpu or --memory-gib"
        )
    return here


def plan_of(
    config: Config, machine: Machine, mfu: float = 0.4, stages: Iterable[str] = STAGES
) -> Plan:
    """The plan of a config, with the lengths of its annotated videos where their files are there
    and the tokens of the student's own vocabulary where its folder has one."""
    count = counter(known_folder(config.student.path))
    evaluated = None
    if config.data.eval.is_file():
        evaluated = sum(1 for _ in _examples(config.data.eval, "eval"))
    annotations = None
    if config.data.train.is_file():
        annotations = Annotations.of(_examples(config.data.train, "train"), count)
    return plan(
        config,
        machine,
        mfu=mfu,
        annotations=annotations,
        evaluated=evaluated,
        count=count,
        stages=stages,
        shares=_shares(config),
    )


def _shares(config: Config) -> list[float] | None:
    """What part of the annotations is whose, of several teachers."""
    if not config.teachers or not config.data.train.is_file():
        return None
    counts = [0] * len(config.teachers)
    for example in _examples(config.data.train, "train"):
        annotation = {key: getattr(example, key) for key in TakesSection.model_fields}
        takers = (n for n, t in enumerate(config.teachers) if t.takes.match(annotation))
        if (taker := next(takers, None)) is not None:
            counts[taker] += 1
    return [count / sum(counts) for count in counts] if any(counts) else None


def _examples(file: Path, split: str) -> Iterator[GroundingExample]:
    from opd_core.annotations.timelens import read_timelens
    from opd_core.types import GroundingExample

    return (e for e in read_timelens(file, split) if isinstance(e, GroundingExample))
