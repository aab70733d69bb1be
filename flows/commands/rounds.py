"""`run`, `stage`, `demo`: what makes rows."""

from __future__ import annotations

import argparse

from flows.commands.arguments import CONFIG, Commands, add, add_overrides, at_least_one
from storage.stages import STAGES

STALE = "stale"
"""As a stage: all that reruns have made stale, in its order."""


def register(commands: Commands) -> None:
    parser = add(commands, "run", run, "run rounds, from the newest committed policy on")
    parser.add_argument("config", metavar="CONFIG", help=CONFIG)
    parser.add_argument("--rounds", type=at_least_one, default=1, metavar="N")
    add_overrides(parser)

    parser = add(commands, "stage", stage, "one stage of a round: what is missing, or all again")
    parser.add_argument(
        "stage", choices=(*STAGES, STALE), metavar="STAGE",
        help=f"{', '.join(STAGES)}; or {STALE}: everything that reruns have made stale",
    )  # fmt: skip
    parser.add_argument("config", metavar="CONFIG", help=CONFIG)
    parser.add_argument(
        "--round", type=int, metavar="K", help="1 is the first (default: the current one)"
    )
    parser.add_argument(
        "--force", action="store_true", help="all of it again; what it wrote before is superseded"
    )
    add_overrides(parser)

    add(commands, "demo", demo, "three rounds on the tiny world, measured before and after")


def run(options: argparse.Namespace) -> None:
    from flows.commands.targets import config_target
    from flows.launch import run_rounds

    target = config_target(options.config, options.overrides)
    run_rounds(target.file, options.rounds, target.overrides)


def stage(options: argparse.Namespace) -> None:
    from flows.commands.targets import config_target
    from flows.launch import run_stage, run_stale

    target = config_target(options.config, options.overrides)
    if options.stage == STALE:
        run_stale(target.file, options.round, options.force, target.overrides)
    else:
        run_stage(options.stage, target.file, options.round, options.force, target.overrides)


def demo(options: argparse.Namespace) -> None:
    from flows.demo import demo as run_demo

    run_demo()
