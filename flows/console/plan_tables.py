"""What `videoopd plan` prints, and what is said of a stage that does not fit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from flows.console.progress import is_quiet
from opd_core.config.toml_text import toml_value
from opd_core.plan.plan import Machine, Model, Plan, StagePlan

if TYPE_CHECKING:
    from rich.table import Table

    from opd_core.plan.memory import Part
    from opd_core.plan.remedies import Change

GB = 1e9
ANOTHER_CARD = "no setting that is known here makes it fit: take a larger card, or smaller models"


def print_plan(plan: Plan) -> None:
    """Print the models, the machine, a table of the stages, their parts, and what does not fit."""
    from flows.console.report import console, number, table

    if not is_quiet():
        print("\n".join(_beginning(plan)))
        made = table("", numbers=("device, GB", "CPU, GB", "videos", "tokens", "shared", "PFLOP",
                                  "hours"))  # fmt: skip
        for stage in plan.stages:
            made.add_row(
                stage.stage,
                f"{stage.memory.on_device / GB:.1f}" + ("" if stage.fits else " !"),
                f"{stage.memory.on_host / GB:.1f}",
                *_work(stage),
            )
        known = [s.hours for s in plan.stages]
        hours = None if None in known else sum(h for h in known if h is not None)
        made.add_row("a round", "", "", "", "", "", "", number(hours, ".2f"))
        console().print(made)
        if plan.beside:
            console().print(_beside(plan))
        print("\n".join(_parts(plan)))
        print(_disk(plan))
    for stage in plan.stages:
        if not stage.fits:
            print(misfit(stage, plan.machine))
    if plan.fits:
        print(f"all stages fit {_place(plan.machine)}")


def _beside(plan: Plan) -> Table:
    """What many cards wait for."""
    from flows.console.report import table

    made = table("beside what the cards compute", "of", numbers=("hours",))
    for line in plan.beside:
        made.add_row(line.what, line.counted, f"{line.hours:.2f}")
    return made


def print_plan_as_json(plan: Plan) -> None:
    """Print the records of the plan."""
    print(json.dumps({**asdict(plan), "fits": plan.fits}, indent=1, default=str))


def misfit(stage: StagePlan, machine: Machine) -> str:
    """One sentence: what does not fit, and which setting makes it fit."""
    memory = stage.memory
    if machine.card is None:
        needed, there = memory.on_device + memory.on_host, machine.ram or 0.0
        what = f"{needed / GB:.1f} GB of memory, and there are {there / GB:.1f} GB"
    elif memory.on_device > machine.card.memory:
        what = (
            f"{memory.on_device / GB:.1f} GB on the device, and {machine.card.name} has "
            f"{machine.card.memory / GB:.1f} GB"
        )
    else:
        ram = machine.ram or 0.0
        what = f"{memory.on_host / GB:.1f} GB beside the device, and there are {ram / GB:.1f} GB"
    fix = ANOTHER_CARD if stage.remedy is None else f"it fits with {settings_text(stage.remedy)}"
    return f"{stage.stage} needs {what}; {fix}"


def settings_text(change: Change) -> str:
    """Changed settings as `--set` takes them."""
    return " ".join(f"--set {key}={toml_value(value)}" for key, value in change.items())


def _beginning(plan: Plan) -> Iterator[str]:
    teachers = (("teacher", model) for model in (plan.teacher, *plan.other_teachers))
    for role, model in (("student", plan.student), *teachers):
        yield f"{role}   {_model(model)}"
    devices = f" x {plan.machine.devices}" if plan.machine.devices > 1 else ""
    yield f"machine   {_place(plan.machine)}{devices}"
    of = "of the annotated videos, on average" if plan.from_annotations else (
        "as many as [video] allows: no annotations at data.train"
    )  # fmt: skip
    yield (
        f"lengths   {plan.vision_tokens:,.0f} vision tokens a video, {plan.prompt_tokens:,.0f} "
        f"tokens a prompt, {plan.answer_tokens:,.0f} an answer; {of}"
    )


def _model(model: Model) -> str:
    numbers = model.parameters
    text = (
        f"{model.shape.family.model_type}, {numbers.all / 1e9:.3g} B parameters, of which "
        f"{numbers.vision / 1e9:.2g} B vision"
    )
    if model.published is None:
        return f"{text}  ({model.path})"
    return f"{text}  (the shape of {model.published}: there is no config.json in {model.path})"


def _place(machine: Machine) -> str:
    if machine.card is None:
        ram = "" if machine.ram is None else f", {machine.ram / GB:.1f} GB"
        return f"the CPU{ram}"
    return f"{machine.card.name}, {machine.card.memory / GB:.1f} GB"


def _work(stage: StagePlan) -> Sequence[str]:
    from flows.console.report import ABSENT, number

    work = stage.work
    if work is None:
        return (ABSENT,) * 5
    return (
        f"{work.videos:,.0f}",
        f"{work.tokens:,.0f}",
        f"{work.separately / work.tokens:.1f}x",
        f"{work.flops / 1e15:,.3g}",
        number(stage.hours, ".2f"),
    )


def _parts(plan: Plan) -> Iterator[str]:
    for stage in plan.stages:
        yield f"{stage.stage:<9} device: {_sum(stage.memory.device)}"
        yield f"{'':<9} CPU: {_sum(stage.memory.host)}"


def _sum(parts: Sequence[Part]) -> str:
    return " + ".join(f"{part.name} {part.bytes / GB:.3g}" for part in parts)


def _disk(plan: Plan) -> str:
    disk = plan.disk
    return (
        f"disk      a round: policy {disk.policy / GB:.3g} GB, tables up to {disk.tables / GB:.2g} "
        f"GB; once: the trainer's state {disk.trainer / GB:.3g} GB, decoded frames up to "
        f"{disk.frames / GB:.3g} GB"
    )
