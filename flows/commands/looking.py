"""`status`, `query`, `show`, `view`, `report`, `diff`, `export`, `track`: what reads a run."""

from __future__ import annotations

from pathlib import Path

import click

from flows.commands.arguments import FOLDER, PATH, RUN_AT, Choice, command, port, run, run_at

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
    from flows.commands.targets import opening
    from flows.console.answers import destination, write_answer
    from flows.run_tokenizer import texts_of
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


@command("view", "look at runs in a browser: curves, rollouts, video beside tokens")
@click.argument("runs", type=click.Path(), metavar="RUN...", nargs=-1, required=True, help=RUN_AT)
@click.option("--port", type=port, metavar="N", help="default: 8470, or one that is free")
@click.option("--no-browser", is_flag=True, help="only print the address")
def view(runs: tuple[str, ...], port: int | None, no_browser: bool) -> None:
    from flows.view.memory import stay_small

    stay_small()
    from flows.commands.targets import opening
    from flows.view.serve import view

    with opening() as open_run:
        view([open_run(run) for run in runs], port, not no_browser)


@command("report", "a run, or two beside each other, as one HTML file to send or to print")
@run_at
@click.argument("other", type=click.Path(), metavar="[RUN2]", required=False, help="another one")
@click.option("--out", type=PATH, metavar="FILE", help="default: report-RUN.html in this folder")
@force
def report(run: str, other: str | None, out: Path | None, force: bool) -> None:
    from flows.commands.targets import opening
    from flows.report.write import write_report

    with opening() as open_run:
        write_report([open_run(name) for name in (run, other) if name is not None], out, force)


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


@command("track", "tell a tracker of a run: tensorboard, trackio, wandb, mlflow")
@run_at
@click.option("--to", required=True, metavar="NAME", help="the tracker, as in `[tracking]`")
@click.option(
    "--out", type=FOLDER, metavar="FOLDER",
    help="of all trackers, with a folder each (default: as `[tracking]` of the run says)",
)  # fmt: skip
def track(run: str, to: str, out: Path | None) -> None:
    from flows.commands.targets import opening
    from flows.commands.track import track

    with opening() as open_run:
        track(open_run(run), to, out)
