"""`init`, `import`, `tinyworld`: what a run begins from."""

from __future__ import annotations

import argparse
from pathlib import Path

from flows.commands.arguments import Commands, add, add_quiet, at_least_one, seconds
from opd_core.annotations.formats.readers import FORMATS


def register(commands: Commands) -> None:
    parser = add(commands, "init", init, "write a config with every key, its meaning and default")
    parser.add_argument(
        "file", type=Path, nargs="?", default=Path("videoopd.toml"), metavar="FILE",
        help="a new file (default: videoopd.toml)",
    )  # fmt: skip

    parser = add(
        commands, "import", import_annotations, "bring annotations of other data sets into our form"
    )
    parser.add_argument("format", choices=tuple(FORMATS), metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--videos", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE.jsonl", help="for data.train or data.eval"
    )
    parser.add_argument("--source", metavar="NAME", help="of all annotations (default: their own)")
    parser.add_argument(
        "--jobs", type=at_least_one, metavar="N", help="videos looked at at once (default: cores)"
    )
    parser.add_argument(
        "--skip-audio-queries", action="store_true",
        help="leave out sentences about what is heard, by TimeLens' nine words",
    )  # fmt: skip
    parser.add_argument(
        "--clamp", type=seconds, default=0.0, metavar="SECONDS",
        help="cut spans that end at most this long after their video to its end (default: none)",
    )  # fmt: skip
    parser.add_argument(
        "--allow-missing", action="store_true",
        help="go on where most of the videos that are named have no file",
    )  # fmt: skip

    tiny = commands.add_parser("tinyworld", help="make the tiny world, or train its models")
    add_quiet(tiny, default=argparse.SUPPRESS)
    kinds = tiny.add_subparsers(title="commands", required=True, metavar="COMMAND")
    parser = add(kinds, "make", make_world, "synthetic videos with annotations")
    parser.add_argument("--out", type=Path, default=Path("worlds/tiny"), metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-videos", type=at_least_one, metavar="N")
    parser.add_argument("--eval-videos", type=at_least_one, metavar="N")
    parser = add(kinds, "train", train, "a tiny teacher or student, from nothing")
    parser.add_argument(
        "role",
        choices=("teacher", "student", "loose-student", "long-teacher", "long-loose-student"),
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: configs/tiny/ROLE")
    parser.add_argument("--steps", type=at_least_one)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--threads", type=at_least_one, default=1)


def init(options: argparse.Namespace) -> None:
    from flows.commands.new_config import write_config

    write_config(options.file)


def import_annotations(options: argparse.Namespace) -> None:
    from flows.commands.import_files import ImportOptions, import_files, print_summary

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


def make_world(options: argparse.Namespace) -> None:
    from flows.demo import make_tiny_world

    make_tiny_world(options.out, options.seed, options.train_videos, options.eval_videos)


def train(options: argparse.Namespace) -> None:
    from opd_core.tinyworld.train import train as train_model
    from storage.files import make_folder

    out = options.out or Path("configs/tiny") / options.role
    make_folder(out)  # before hours of training, not after
    train_model(
        options.role,
        out,
        steps=options.steps,
        seed=options.seed,
        lr=options.lr,
        threads=options.threads,
        report=lambda line: print(line, flush=True),
    )
