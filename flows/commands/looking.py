"""`status`, `query`, `show`, `diff`, `export`: what reads a run."""

from __future__ import annotations

from pathlib import Path

import click

from flows.commands.arguments import FOLDER, PATH, Choice, command, run, run_at

FORMATS = ("table", "json", "jsonl", "csv", "parquet")

force = click.option("--force", is_flag=True, help="replace what is at --out")


@command("status", "what a run holds and what its round still lacks")
@run_at
@click.option("--json", "as_json", is_flag=True, help="for programs")
def status(run: str, as_json: bool) -> None:
    from flows.commands.status import print_status
    from flows.commands.targets import opening, split_round

    name, _ = split_round(run)
    with opening() as open_run:
        print_status(open_run(run), name if Path(name).is_file() else None, as_json)


@command("query", "ask the tables of a run in SQL")
@run_at
@click.argument(
    "sql", metavar="SQL",
    help='for example "SELECT count(*) FROM rollouts", "SHOW TABLES", "DESCRIBE rollouts"',
)  # fmt: skip
@click.option(
    "--format", type=Choice(FORMATS), help="default: a table, or what the name of --out ends in"
)
@click.option(
    "--out", type=PATH, metavar="FILE",
    help="instead of standard output: .csv, .json, .jsonl, .ndjson or .parquet",
)  # fmt: skip
@force
def query(run: str, sql: str, format: str | None, out: Path | None, force: bool) -> None:
    from flows.commands.ask import texts_of
    from flows.commands.targets import opening
    from flows.console.answers import destination, write_answer
    from storage.asking.query import query

    to = destination(format, out, force)
    with opening() as open_run:
        opened = open_run(run)
        write_answer(query(opened, sql, texts_of(opened)), to)


@command("show", "one rollout: question, answer, spans and tokens")
@run
@click.argument(
    "id", metavar="ID", help="of a rollout or an example, or how it begins, if only one does"
)
def show(run: str, id: str) -> None:
    from flows.commands.show import show
    from flows.commands.targets import opening

    with opening() as open_run:
        show(open_run(run), id)


@command("diff", "in what two runs or rounds differ: inputs and numbers")
@click.argument(
    "a", type=click.Path(), metavar="A", help="a run, or RUN@3 for the run as of round 3"
)
@click.argument("b", type=click.Path(), metavar="B", help="another")
@click.option("--format", type=Choice(("text", "json")), default="text")
def diff(a: str, b: str, format: str) -> None:
    from flows.commands.ask import print_diff
    from flows.commands.targets import opening

    with opening() as open_run:
        print_diff(open_run(a), open_run(b), format)


@command("export", "write tables and views for other programs")
@run_at
@click.option(
    "--to", type=Choice(("parquet", "jsonl", "hf", "hub-folder")), required=True,
    help="hf: a folder that datasets.load_dataset opens; hub-folder: the policy (of RUN@3 the"
    " third) with a model card",
)  # fmt: skip
@click.option("--out", type=FOLDER, required=True, metavar="FOLDER", help="a new folder")
@click.option(
    "--table", "tables", multiple=True, metavar="NAME",
    help="a table or view; may be repeated (default: trajectories)",
)  # fmt: skip
@force
def export(run: str, to: str, out: Path, tables: tuple[str, ...], force: bool) -> None:
    from flows.commands.ask import export
    from flows.commands.targets import opening

    with opening() as open_run:
        export(open_run(run), to, out, tables, force)
