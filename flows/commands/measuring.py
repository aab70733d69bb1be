"""`evaluate`, `study`, `bench`: what gives numbers."""

from __future__ import annotations

from pathlib import Path

import click

from flows.commands.arguments import FOLDER, PATH, Choice, at_least_one, command, overrides
from opd_core.spans.protocols.known import PROTOCOLS


@command(
    "evaluate", f"how well a policy or a model does, with intervals, by {', '.join(PROTOCOLS)}"
)
@click.argument(
    "target", type=click.Path(), metavar="RUN",
    help="RUN@3 is the run as of round 3; a config asks what is missing",
)  # fmt: skip
@click.option("--policy", type=int, metavar="N", help="a policy of the run (default: the newest)")
@click.option(
    "--model", type=FOLDER, metavar="MODEL",
    help="instead, any Hugging Face checkpoint: its folder, or its name on the hub",
)  # fmt: skip
@click.option(
    "--against", type=click.Path(), metavar="B",
    help="compare with another run or policy (RUN@0: the base), or with a model",
)  # fmt: skip
@click.option("--by", type=Choice(("source", "duration")), help="also in groups")
@click.option("--format", type=Choice(("table", "json")), default="table")
@overrides
def evaluate(
    target: str, policy: int | None, model: Path | None, against: str | None, by: str | None,
    format: str, overrides: tuple[str, ...],
) -> None:  # fmt: skip
    from flows.commands.targets import opening
    from flows.evaluation.command import evaluate_command
    from opd_core.config.paths import from_folder

    given = from_folder(overrides, Path.cwd())
    with opening() as open_run:
        evaluate_command(target, open_run, policy, model, against, by, format, given)


@command("study", "arms, learning rates and seeds; a table with plots")
@click.argument("file", type=PATH, metavar="FILE", help="as configs/studies/claims.toml")
@click.argument("names", nargs=-1, metavar="[NAME]...", help="more of --arms")
@click.option("--quick", is_flag=True, help="the file's [quick]: small and noisy")
@click.option("--jobs", type=at_least_one, default=2, metavar="N", help="runs at once")
@click.option("--report", is_flag=True, help="write the report again, running nothing")
@click.option("--arms", multiple=True, metavar="NAME", help="run these only, the others later")
@click.option("--runs", type=FOLDER, default="runs/studies", metavar="FOLDER", help="of the runs")
@click.option("--out", type=FOLDER, default="docs/studies", metavar="FOLDER", help="of the report")
def study(
    file: Path, names: tuple[str, ...], quick: bool, jobs: int, report: bool,
    arms: tuple[str, ...], runs: Path, out: Path,
) -> int:  # fmt: skip
    from flows.study.run import StudyOptions, study

    if names and not arms:
        raise click.UsageError(f"{names[0]!r} is one argument too many; arms stand after --arms")
    return study(StudyOptions(file, quick, jobs, report, (*arms, *names), runs, out))


@command("bench", "the numbers the project is measured by (long)")
@click.argument("names", nargs=-1, metavar="[NAME]...", help="these only (default: all)")
@click.option("--list", "listed", is_flag=True, help="what there is to measure")
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="after which `accelerator` ends itself",
)
def bench(names: tuple[str, ...], listed: bool, minutes: float | None) -> None:
    from importlib import import_module

    # By name, because type checkers follow an import into what the bench needs.
    benches = import_module("flows.bench.run")
    if listed:
        benches.print_list()
    else:
        benches.main(names, minutes)
