"""`audit`, `rescore`, `tag`, `migrate`: what is done with what is stored."""

from __future__ import annotations

from pathlib import Path

import click

from flows.commands.arguments import RUN, Choice, at_least_one, command, run, run_at, share


@command("audit", "prove the chain from checkpoints back to the videos")
@run_at
@click.option(
    "--deep", type=share, default=0.0, metavar="SHARE",
    help="sample and score this share of the batches again, and compare",
)  # fmt: skip
@click.option(
    "--videos", type=share, default=1.0, metavar="SHARE",
    help="decode this share of the videos again",
)  # fmt: skip
@click.option(
    "--tolerance", type=float, metavar="NATS",
    help="of --deep (default: none on a CPU in float32)",
)  # fmt: skip
@click.option("--seed", type=int, metavar="N", help="of the random shares")
@click.option("--format", type=Choice(("text", "json")), default="text")
def audit(
    run: str, deep: float, videos: float, tolerance: float | None, seed: int | None, format: str
) -> int:
    from flows.audit.walk import Depth
    from flows.commands.ask import print_audit
    from flows.commands.targets import opening

    with opening() as open_run:
        return print_audit(open_run(run), Depth(videos, deep, tolerance, seed), format)


@command("rescore", "exact divergences from kept hidden states")
@run
@click.option(
    "--round", type=at_least_one, metavar="K",
    help="the round that made policy K (default: every round that kept hidden states)",
)  # fmt: skip
def rescore(run: str, round: int | None) -> None:
    from flows.commands.targets import opening
    from flows.rescore import rescore_run
    from flows.stage.models import with_folders
    from opd_core.config.load import load_config

    config = with_folders(load_config(run), run) if Path(run).is_file() else None
    with opening() as open_run:
        rescore_run(open_run(run), round, config)


@command("tag", "name a policy, which then keeps its weights where policies.keep says so")
@click.argument("run", type=click.Path(), metavar="RUN", help=f"{RUN}; RUN@3 is its policy 3")
@click.argument("name", metavar="NAME", help="one word; no two policies of a run have the same")
@click.option("--remove", is_flag=True, help="take the name off that policy again")
def tag(run: str, name: str, remove: bool) -> None:
    from flows.commands.targets import opening, split_round
    from storage.runs import letting_go

    place, number = split_round(run)
    with opening() as open_run:
        opened = open_run(place)
        version = opened.current_policy().version if number is None else number
        (letting_go.untag if remove else letting_go.tag)(opened, version, name)
    print(f"policy {version} of {opened.path} is {'no longer ' if remove else ''}tagged {name}")


@command("migrate", "bring a run of an older format up, so that it can go on")
@run
def migrate(run: str) -> None:
    from flows.commands.targets import opening

    with opening() as open_run:
        opened = open_run(run)
        before, added = opened.tables.format, opened.migrate()
    now, columns = opened.tables.format, sum(map(len, added.values()))
    if before == now and not columns:
        print(f"{opened.path} is of format {before} already; nothing was changed")
        return
    format = f"format {before} -> {now}" if before != now else f"format {now}"
    print(f"{opened.path}: {format}, {columns} columns added, no row moved")
