"""`audit`, `rescore`, `migrate`: what is done with what is stored."""

from __future__ import annotations

import argparse
from pathlib import Path

from flows.commands.arguments import RUN, RUN_AT, Commands, add, at_least_one, share


def register(commands: Commands) -> None:
    parser = add(commands, "audit", audit, "prove the chain from checkpoints back to the videos")
    parser.add_argument("run", metavar="RUN", help=RUN_AT)
    parser.add_argument(
        "--deep", type=share, default=0.0, metavar="SHARE",
        help="sample and score this share of the batches again, and compare",
    )  # fmt: skip
    parser.add_argument(
        "--videos", type=share, default=1.0, metavar="SHARE",
        help="decode this share of the videos again (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance", type=float, metavar="NATS",
        help="of --deep (default: none on a CPU in float32)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, help="of the random shares")
    parser.add_argument("--format", choices=("text", "json"), default="text")

    parser = add(commands, "rescore", rescore, "exact divergences from kept hidden states")
    parser.add_argument("run", metavar="RUN", help=RUN)
    parser.add_argument(
        "--round", type=at_least_one, metavar="K",
        help="the round that made policy K (default: every round that kept hidden states)",
    )  # fmt: skip

    parser = add(
        commands, "migrate", migrate, "bring a run of an older format up, so that it can go on"
    )
    parser.add_argument("run", metavar="RUN", help=RUN)


def audit(options: argparse.Namespace) -> int:
    from flows.audit.walk import Depth
    from flows.commands.ask import print_audit
    from flows.commands.targets import opening

    depth = Depth(options.videos, options.deep, options.tolerance, options.seed)
    with opening() as open_run:
        return print_audit(open_run(options.run), depth, options.format)


def rescore(options: argparse.Namespace) -> None:
    from flows.commands.targets import opening
    from flows.rescore import rescore_run
    from opd_core.config.load import load_config

    path = Path(options.run)
    config = load_config(path) if path.is_file() else None
    with opening() as open_run:
        rescore_run(open_run(options.run), options.round, config)


def migrate(options: argparse.Namespace) -> None:
    from flows.commands.targets import opening

    with opening() as open_run:
        run = open_run(options.run)
        before, given = run.tables.format, run.migrate()
    now, columns = run.tables.format, sum(map(len, given.values()))
    if before == now and not columns:
        print(f"{run.path} is of format {before} already; nothing was changed")
        return
    format = f"format {before} -> {now}" if before != now else f"format {now}"
    print(f"{run.path}: {format}, {columns} columns added, no row moved")
