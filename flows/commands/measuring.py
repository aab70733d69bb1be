"""`evaluate`, `study`, `bench`: what gives numbers."""

from __future__ import annotations

import argparse
from pathlib import Path

from flows.commands.arguments import Commands, add, add_overrides, at_least_one
from opd_core.spans.protocols.known import PROTOCOLS


def register(commands: Commands) -> None:
    parser = add(
        commands, "evaluate", evaluate, "how well a policy or a model does, with intervals"
    )
    parser.description = f"{parser.description} By the protocols {', '.join(PROTOCOLS)}."
    parser.add_argument(
        "target",
        metavar="RUN",
        help="RUN@3 is the run as of round 3; a config asks what is missing",
    )
    parser.add_argument(
        "--policy", type=int, metavar="N", help="a policy of the run (default: the newest)"
    )
    parser.add_argument(
        "--model", type=Path, metavar="FOLDER", help="instead, any Hugging Face checkpoint"
    )
    parser.add_argument(
        "--against",
        metavar="B",
        help="compare with another run or policy (RUN@0: the base), or with a model's folder",
    )
    parser.add_argument("--by", choices=("source", "duration"), help="also in groups")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    add_overrides(parser)

    parser = add(commands, "study", study, "arms, learning rates and seeds; a table with plots")
    parser.add_argument("file", type=Path, metavar="FILE", help="as configs/studies/claims.toml")
    parser.add_argument("--quick", action="store_true", help="the file's [quick]: small and noisy")
    parser.add_argument(
        "--jobs", type=at_least_one, default=2, metavar="N", help="runs at once (default: 2)"
    )
    parser.add_argument(
        "--report", action="store_true", help="write the report again, running nothing"
    )
    parser.add_argument(
        "--arms", nargs="+", default=[], metavar="NAME", help="run these only, the others later"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/studies"), metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path("docs/studies"), metavar="FOLDER")

    parser = add(commands, "bench", bench, "the numbers the project is measured by (long)")
    parser.add_argument("names", nargs="*", metavar="NAME", help="these only (default: all)")
    parser.add_argument("--list", action="store_true", help="what there is to measure")


def evaluate(options: argparse.Namespace) -> None:
    from flows.commands.targets import opening
    from flows.evaluation.command import evaluate_command
    from opd_core.config.paths import from_folder

    with opening() as open_run:
        evaluate_command(
            options.target,
            open_run,
            options.policy,
            options.model,
            options.against,
            options.by,
            options.format,
            from_folder(options.overrides, Path.cwd()),
        )


def study(options: argparse.Namespace) -> int:
    from flows.study.run import StudyOptions
    from flows.study.run import study as run_study

    return run_study(
        StudyOptions(
            options.file,
            options.quick,
            options.jobs,
            options.report,
            tuple(options.arms),
            options.runs,
            options.out,
        )
    )


def bench(options: argparse.Namespace) -> None:
    from importlib import import_module

    # By name, because type checkers follow an import into what the bench needs.
    benches = import_module("flows.bench.run")
    if options.list:
        benches.print_list()
    else:
        benches.main(options.names)
