"""`run`, `stage`, `demo`: what makes rows."""

from __future__ import annotations

import click

from flows.commands.arguments import Choice, at_least_one, command, config, overrides
from storage.stages import STAGES

STALE = "stale"
"""As a stage: all that reruns have made stale, in its order."""


@command("run", "run rounds, from the newest committed policy on")
@config
@click.option("--rounds", type=at_least_one, default=1, metavar="N", help="how many")
@overrides
def run(config: str, rounds: int, overrides: tuple[str, ...]) -> None:
    from flows.commands.targets import config_target
    from flows.launch import run_rounds

    target = config_target(config, overrides)
    run_rounds(target.file, rounds, target.overrides)


@command("stage", "one stage of a round: what is missing, or all again")
@click.argument(
    "stage", type=Choice((*STAGES, STALE)), metavar="STAGE",
    help=f"{', '.join(STAGES)}; or {STALE}: everything that reruns have made stale",
)  # fmt: skip
@config
@click.option("--round", type=int, metavar="K", help="1 is the first (default: the current one)")
@click.option(
    "--force", is_flag=True, help="all of it again; what it wrote before is superseded"
)  # fmt: skip
@overrides
def stage(
    stage: str, config: str, round: int | None, force: bool, overrides: tuple[str, ...]
) -> None:
    from flows.commands.targets import config_target
    from flows.launch import run_stage, run_stale

    target = config_target(config, overrides)
    if stage == STALE:
        run_stale(target.file, round, force, target.overrides)
    else:
        run_stage(stage, target.file, round, force, target.overrides)


@command("demo", "three rounds on the tiny world, measured before and after")
def demo() -> None:
    from flows.demo import demo

    demo()
