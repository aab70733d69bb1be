"""The command line: `videoopd ...`.

Parsing imports nothing heavy, so `--help` is instant; each command imports what it needs. An error
that a user can cause ends with one sentence and code 2; any other keeps its traceback.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from opd_core.formats.readers import READERS
from opd_core.types import VideoOPDError

if TYPE_CHECKING:
    from storage.run import Run

STAGES = ("draw", "rollout", "score", "focus", "update", "evaluate")
Command = Callable[[argparse.Namespace], int | None]
"""Returns an exit code, None for 0."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    options = _parser().parse_args(arguments)
    command: Command = options.command
    with _interrupts() as pressed:
        try:
            code = command(options)
            sys.stdout.flush()
            return code or 0
        except VideoOPDError as error:
            print(f"videoopd: {error}", file=sys.stderr)
            return 2
        except BrokenPipeError:
            # The reader (`| head`) has seen enough. Keep Python from flushing into it at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except BaseException as error:
            # A KeyboardInterrupt that lands in a callback of polars comes out as a panic.
            if not pressed and not isinstance(error, KeyboardInterrupt):
                raise
            print("\nvideoopd: stopped; continue with the same command", file=sys.stderr)
            return 130


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Ctrl-C raises `KeyboardInterrupt` as ever, and is noted in the list."""
    pressed: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        signal.default_int_handler(number, frame)

    mine = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if mine:
        signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        if mine:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="videoopd",
        description="On-policy distillation for temporal video grounding.",
        epilog="RUN is the folder of a run, or a config whose run.path is that folder.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = _add(commands, "run", _run, "run rounds, from the newest committed policy on")
    run.add_argument("config", metavar="CONFIG", help="a TOML file, such as configs/tiny.toml")
    run.add_argument("--rounds", type=_at_least_one, default=1, metavar="N")
    run.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE",
        help="override a value of the config; may be repeated",
    )  # fmt: skip

    stage = _add(commands, "stage", _stage, "one stage of a round: what is missing, or all again")
    stage.add_argument("stage", choices=STAGES, metavar="STAGE", help=", ".join(STAGES))
    stage.add_argument("config", metavar="CONFIG")
    stage.add_argument(
        "--round", type=int, metavar="K", help="1 is the first (default: the current one)"
    )
    stage.add_argument(
        "--force", action="store_true", help="all of it again; what it wrote before is superseded"
    )
    stage.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE"
    )

    status = _add(commands, "status", _status, "what a run holds and what its round still lacks")
    status.add_argument("run", metavar="RUN")

    query = _add(commands, "query", _query, "ask the tables of a run in SQL")
    query.add_argument("run", metavar="RUN", help="RUN@3 is the run as of round 3")
    query.add_argument("sql", metavar="SQL", help='for example "SELECT count(*) FROM rollouts"')
    query.add_argument("--format", choices=("table", "json", "csv", "parquet"), default="table")
    query.add_argument("--out", type=Path, metavar="FILE", help="instead of standard output")

    show = _add(commands, "show", _show, "one rollout: question, answer, spans and tokens")
    show.add_argument("run", metavar="RUN")
    show.add_argument("rollout_id", metavar="ROLLOUT_ID")

    diff = _add(commands, "diff", _diff, "in what two runs or rounds differ: inputs and numbers")
    diff.add_argument("a", metavar="A", help="a run, or RUN@3 for the run as of round 3")
    diff.add_argument("b", metavar="B")
    diff.add_argument("--format", choices=("text", "json"), default="text")

    export = _add(commands, "export", _export, "write tables and views for other programs")
    export.add_argument("run", metavar="RUN", help="RUN@3 is the run as of round 3")
    export.add_argument(
        "--to", choices=("parquet", "jsonl", "hf", "hub-folder"), required=True,
        help="hf: a folder that datasets.load_dataset opens; hub-folder: the policy (of RUN@3 the"
        " third) with a model card",
    )  # fmt: skip
    export.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a new folder")
    export.add_argument(
        "--table", dest="tables", action="append", default=[], metavar="NAME",
        help="a table or view; may be repeated (default: trajectories)",
    )  # fmt: skip

    audit = _add(commands, "audit", _audit, "prove the chain from checkpoints back to the videos")
    audit.add_argument("run", metavar="RUN", help="RUN@3 is the run as of round 3")
    audit.add_argument(
        "--deep", type=_share, default=0.0, metavar="SHARE",
        help="sample and score this share of the batches again, and compare",
    )  # fmt: skip
    audit.add_argument(
        "--videos", type=_share, default=1.0, metavar="SHARE",
        help="decode this share of the videos again (default: all)",
    )  # fmt: skip
    audit.add_argument(
        "--tolerance", type=float, metavar="NATS",
        help="of --deep (default: none on a CPU in float32)",
    )  # fmt: skip
    audit.add_argument("--seed", type=int, help="of the random shares")
    audit.add_argument("--format", choices=("text", "json"), default="text")

    bring = _add(commands, "import", _import, "bring annotations of other data sets into our form")
    bring.add_argument("format", choices=tuple(READERS), metavar="FORMAT", help=", ".join(READERS))
    bring.add_argument("files", type=Path, nargs="+", metavar="FILE")
    bring.add_argument("--videos", type=Path, required=True, metavar="FOLDER")
    bring.add_argument(
        "--out", type=Path, required=True, metavar="FILE.jsonl", help="for data.train or data.eval"
    )
    bring.add_argument("--source", metavar="NAME", help="of all annotations (default: their own)")
    bring.add_argument(
        "--jobs", type=_at_least_one, metavar="N", help="videos looked at at once (default: cores)"
    )
    bring.add_argument(
        "--skip-audio-queries", action="store_true",
        help="leave out sentences about what is heard, by TimeLens' nine words",
    )  # fmt: skip
    bring.add_argument(
        "--clamp", type=_seconds, default=0.0, metavar="SECONDS",
        help="cut spans that end at most this long after their video to its end (default: none)",
    )  # fmt: skip
    bring.add_argument(
        "--allow-missing", action="store_true",
        help="go on where most of the videos that are named have no file",
    )  # fmt: skip

    evaluate = _add(
        commands, "evaluate", _evaluate, "how well a policy or a model does, with intervals"
    )
    evaluate.add_argument(
        "target",
        metavar="RUN",
        help="RUN@3 is the run as of round 3; a config asks what is missing",
    )
    evaluate.add_argument(
        "--policy", type=int, metavar="N", help="a policy of the run (default: the newest)"
    )
    evaluate.add_argument(
        "--model", type=Path, metavar="FOLDER", help="instead, any Hugging Face checkpoint"
    )
    evaluate.add_argument(
        "--against",
        metavar="B",
        help="compare with another run or policy (RUN@0: the base), or with a model's folder",
    )
    evaluate.add_argument("--by", choices=("source", "duration"), help="also in groups")
    evaluate.add_argument("--format", choices=("table", "json"), default="table")

    rescore = _add(commands, "rescore", _rescore, "exact divergences from kept hidden states")
    rescore.add_argument("run", metavar="RUN")
    rescore.add_argument(
        "--round", type=_at_least_one, metavar="K",
        help="the round that made policy K (default: every round that kept hidden states)",
    )  # fmt: skip

    study = _add(commands, "study", _study, "arms, learning rates and seeds; a table with plots")
    study.add_argument("file", type=Path, metavar="FILE", help="as configs/studies/claims.toml")
    study.add_argument("--quick", action="store_true", help="the file's [quick]: small and noisy")
    study.add_argument(
        "--jobs", type=_at_least_one, default=2, metavar="N", help="runs at once (default: 2)"
    )
    study.add_argument(
        "--report", action="store_true", help="write the report again, running nothing"
    )
    study.add_argument(
        "--arms", nargs="+", default=[], metavar="NAME", help="run these only, the others later"
    )
    study.add_argument("--runs", type=Path, default=Path("runs/studies"), metavar="FOLDER")
    study.add_argument("--out", type=Path, default=Path("docs/studies"), metavar="FOLDER")

    _add(commands, "demo", _demo, "three rounds on the tiny world, measured before and after")
    _add(commands, "up", _up, "start a Prefect server on loopback that serves the deployments")
    _add(commands, "down", _down, "stop what `up` started")

    tiny = commands.add_parser("tinyworld", help="make the tiny world, or train its models")
    kinds = tiny.add_subparsers(title="commands", required=True, metavar="COMMAND")
    make = _add(kinds, "make", _make_world, "synthetic videos with annotations")
    make.add_argument("--out", type=Path, default=Path("worlds/tiny"), metavar="FOLDER")
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--train-videos", type=_at_least_one, metavar="N")
    make.add_argument("--eval-videos", type=_at_least_one, metavar="N")
    train = _add(kinds, "train", _train, "a tiny teacher or student, from nothing")
    train.add_argument("role", choices=("teacher", "student"))
    train.add_argument("--out", type=Path, metavar="FOLDER", help="default: configs/tiny/ROLE")
    train.add_argument("--steps", type=_at_least_one)
    train.add_argument("--seed", type=int)
    train.add_argument("--lr", type=float)
    train.add_argument("--threads", type=_at_least_one, default=1)

    bench = _add(commands, "bench", _bench, "the numbers the project is measured by (long)")
    bench.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    command: Command,
    about: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
    parser.set_defaults(command=command)
    return parser


def _at_least_one(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0.0 <= number <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return number


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0.0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, 0 or more")
    return number


def _run(options: argparse.Namespace) -> None:
    from flows.launch import run_rounds

    run_rounds(options.config, options.rounds, options.overrides)


def _stage(options: argparse.Namespace) -> None:
    from flows.launch import run_stage

    run_stage(options.stage, options.config, options.round, options.force, options.overrides)


def _demo(options: argparse.Namespace) -> None:
    from flows.demo import demo

    demo()


def _status(options: argparse.Namespace) -> None:
    from flows.status import print_status

    print_status(_open(options.run), options.run if Path(options.run).is_file() else None)


def _query(options: argparse.Namespace) -> None:
    from flows.ask import texts_of
    from flows.report import write_frame
    from storage.query import query

    run = _open_at(options.run)
    write_frame(query(run, options.sql, texts_of(run)), options.format, options.out)


def _diff(options: argparse.Namespace) -> None:
    from flows.ask import print_diff

    print_diff(_open_at(options.a), _open_at(options.b), options.format)


def _export(options: argparse.Namespace) -> None:
    from flows.ask import export

    export(_open_at(options.run), options.to, options.out, options.tables)


def _audit(options: argparse.Namespace) -> int:
    from flows.ask import print_audit
    from flows.audit import Depth

    depth = Depth(options.videos, options.deep, options.tolerance, options.seed)
    return print_audit(_open_at(options.run), depth, options.format)


def _import(options: argparse.Namespace) -> None:
    from flows.import_annotations import ImportOptions, import_files, print_summary

    wanted = ImportOptions(
        options.format,
        options.files,
        options.videos,
        options.out,
        options.source,
        options.jobs,
        options.skip_audio_queries,
        clamp_seconds=options.clamp,
        allow_missing=options.allow_missing,
    )
    print_summary(import_files(wanted))


def _evaluate(options: argparse.Namespace) -> None:
    from flows.evaluation import evaluate_command

    evaluate_command(
        options.target,
        _open,
        options.policy,
        options.model,
        options.against,
        options.by,
        options.format,
    )


def _rescore(options: argparse.Namespace) -> None:
    from flows.rescore import rescore_run
    from opd_core.config import load_config

    path = Path(options.run)
    config = load_config(path) if path.is_file() else None
    rescore_run(_open(options.run), options.round, config)


def _study(options: argparse.Namespace) -> int:
    from flows.study import StudyOptions, study

    return study(
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


def _show(options: argparse.Namespace) -> None:
    from flows.show import show

    show(_open(options.run), options.rollout_id)


def _up(options: argparse.Namespace) -> None:
    from flows.server import up

    up()


def _down(options: argparse.Namespace) -> None:
    from flows.server import down

    down()


def _make_world(options: argparse.Namespace) -> None:
    from flows.demo import make_tiny_world

    make_tiny_world(options.out, options.seed, options.train_videos, options.eval_videos)


def _train(options: argparse.Namespace) -> None:
    from opd_core.tinyworld.train import train

    train(
        options.role,
        options.out or Path("configs/tiny") / options.role,
        steps=options.steps,
        seed=options.seed,
        lr=options.lr,
        threads=options.threads,
        report=lambda line: print(line, flush=True),
    )


def _bench(options: argparse.Namespace) -> None:
    from importlib import import_module

    import_module("flows.bench").main(options.rest)


def _open(run: str) -> Run:
    """The run in a folder, or of a config. Raises `VideoOPDError` where there is none."""
    path = Path(run)
    if path.is_file():
        from opd_core.config import load_config

        path = load_config(path).run.path
        if not path.exists():
            raise VideoOPDError(
                f"there is no run at {path} yet; start it with `videoopd run {run}`"
            )
    from storage.run import Run

    return Run.open(path)


def _open_at(run: str) -> Run:
    """As `_open`; RUN@3 is the run as it was when round 3 was finished."""
    path, at, number = run.rpartition("@")
    if not at or not number.isdecimal() or Path(run).exists():
        return _open(run)
    from storage.run import Run

    return Run.open(_open(path).path, int(number))


if __name__ == "__main__":
    sys.exit(main())
