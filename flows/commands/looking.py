"""`status`, `query`, `show`, `diff`, `export`: what reads a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from flows.commands.arguments import RUN, RUN_AT, Commands, add

FORMATS = ("table", "json", "jsonl", "csv", "parquet")


def register(commands: Commands) -> None:
    parser = add(commands, "status", status, "what a run holds and what its round still lacks")
    parser.add_argument("run", metavar="RUN", help=RUN_AT)
    parser.add_argument("--json", action="store_true", help="for programs")

    parser = add(commands, "query", query, "ask the tables of a run in SQL")
    parser.add_argument("run", metavar="RUN", help=RUN_AT)
    parser.add_argument(
        "sql", metavar="SQL",
        help='for example "SELECT count(*) FROM rollouts", "SHOW TABLES", "DESCRIBE rollouts"',
    )  # fmt: skip
    parser.add_argument(
        "--format", choices=FORMATS, help="default: a table, or what the name of --out ends in"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE",
        help="instead of standard output: .csv, .json, .jsonl, .ndjson or .parquet",
    )  # fmt: skip
    _add_force(parser)

    parser = add(commands, "show", show, "one rollout: question, answer, spans and tokens")
    parser.add_argument("run", metavar="RUN", help=RUN)
    parser.add_argument(
        "id", metavar="ID", help="of a rollout or an example, or how it begins, if only one does"
    )

    parser = add(commands, "diff", diff, "in what two runs or rounds differ: inputs and numbers")
    parser.add_argument("a", metavar="A", help="a run, or RUN@3 for the run as of round 3")
    parser.add_argument("b", metavar="B")
    parser.add_argument("--format", choices=("text", "json"), default="text")

    parser = add(commands, "export", export, "write tables and views for other programs")
    parser.add_argument("run", metavar="RUN", help=RUN_AT)
    parser.add_argument(
        "--to", choices=("parquet", "jsonl", "hf", "hub-folder"), required=True,
        help="hf: a folder that datasets.load_dataset opens; hub-folder: the policy (of RUN@3 the"
        " third) with a model card",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder")
    parser.add_argument(
        "--table", dest="tables", action="append", default=[], metavar="NAME",
        help="a table or view; may be repeated (default: trajectories)",
    )  # fmt: skip
    _add_force(parser)


def _add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="replace what is at --out")


def status(options: argparse.Namespace) -> None:
    from flows.commands.status import print_status
    from flows.commands.targets import opening, split_round

    name, _ = split_round(options.run)
    with opening() as open_run:
        config = name if Path(name).is_file() else None
        print_status(open_run(options.run), config, as_json=options.json)


def query(options: argparse.Namespace) -> None:
    from flows.commands.ask import texts_of
    from flows.commands.targets import opening
    from flows.console.answers import destination, write_answer
    from storage.asking.query import query as ask

    to = destination(options.format, options.out, options.force)
    with opening() as open_run:
        run = open_run(options.run)
        write_answer(ask(run, options.sql, texts_of(run)), to)


def show(options: argparse.Namespace) -> None:
    from flows.commands.show import show as show_rollout
    from flows.commands.targets import opening

    with opening() as open_run:
        show_rollout(open_run(options.run), options.id)


def diff(options: argparse.Namespace) -> None:
    from flows.commands.ask import print_diff
    from flows.commands.targets import opening

    with opening() as open_run:
        print_diff(open_run(options.a), open_run(options.b), options.format)


def export(options: argparse.Namespace) -> None:
    from flows.commands.ask import export as write
    from flows.commands.targets import opening

    with opening() as open_run:
        write(open_run(options.run), options.to, options.out, options.tables, options.force)
