"""`init`, `import`, `tinyworld`: what a run begins from."""

from __future__ import annotations

from pathlib import Path

import click

from flows.commands.arguments import FOLDER, PATH, Choice, at_least_one, command, group, seconds
from opd_core.annotations.formats.readers import FORMATS
from opd_core.tinyworld.annotators import ANNOTATORS
from opd_core.tinyworld.recipes import RECIPES
from opd_core.tinyworld.scenes import SCENES


@command("init", "write a config with every key, its meaning and default")
@click.argument(
    "file", type=PATH, default="videoopd.toml", metavar="[FILE]",
    help="a new file (default: videoopd.toml)",
)  # fmt: skip
def init(file: Path) -> None:
    from flows.commands.new_config import write_config

    write_config(file)


@command("import", "bring annotations of other data sets into our form")
@click.argument("format", type=Choice(tuple(FORMATS)), metavar="FORMAT", help=", ".join(FORMATS))
@click.argument("files", type=PATH, nargs=-1, required=True, metavar="FILE...", help="in that form")
@click.option("--videos", type=FOLDER, required=True, metavar="FOLDER", help="where the videos are")
@click.option(
    "--out", type=PATH, required=True, metavar="FILE.jsonl", help="for data.train or data.eval"
)
@click.option("--source", metavar="NAME", help="of all annotations (default: their own)")
@click.option(
    "--jobs", type=at_least_one, metavar="N", help="videos looked at at once (default: cores)"
)
@click.option(
    "--skip-audio-queries", is_flag=True,
    help="leave out sentences about what is heard, by TimeLens' nine words",
)  # fmt: skip
@click.option(
    "--clamp", type=seconds, default=0.0, metavar="SECONDS",
    help="cut spans that end at most this long after their video to its end",
)  # fmt: skip
@click.option(
    "--allow-missing", is_flag=True,
    help="go on where most of the videos that are named have no file",
)  # fmt: skip
def import_annotations(
    format: str, files: tuple[Path, ...], videos: Path, out: Path, source: str | None,
    jobs: int | None, skip_audio_queries: bool, clamp: float, allow_missing: bool,
) -> None:  # fmt: skip
    from flows.commands.import_files import ImportOptions, import_files, print_summary

    wanted = ImportOptions(
        format, files, videos, out, source, jobs, skip_audio_queries,
        clamp_seconds=clamp, allow_missing=allow_missing,
    )  # fmt: skip
    print_summary(import_files(wanted))


@command("make", "synthetic videos with annotations")
@click.option("--out", type=FOLDER, default="worlds/tiny", metavar="FOLDER")
@click.option("--seed", type=int, default=0, metavar="N")
@click.option("--train-videos", type=at_least_one, metavar="N", help="default: as the demo's")
@click.option("--eval-videos", type=at_least_one, metavar="N", help="default: as the demo's")
@click.option(
    "--annotations", type=Choice(tuple(ANNOTATORS)), default="clean",
    help="of the training videos: the truth, or as people annotate",
)  # fmt: skip
@click.option(
    "--scene", type=Choice(tuple(SCENES)), default="short", help="12 s a video, or 48 s and harder"
)
def make_world(
    out: Path, seed: int, train_videos: int | None, eval_videos: int | None, annotations: str,
    scene: str,
) -> None:  # fmt: skip
    from flows.demo import make_tiny_world

    make_tiny_world(out, seed, train_videos, eval_videos, annotations, scene)


@command("train", "a tiny teacher or student, from nothing")
@click.argument("name", type=Choice(tuple(RECIPES)), metavar="MODEL", help=", ".join(RECIPES))
@click.option("--out", type=FOLDER, metavar="FOLDER", help="default: configs/tiny/MODEL")
@click.option("--steps", type=at_least_one, metavar="N", help="default: as the shipped model's")
@click.option("--seed", type=int, metavar="N", help="default: as the shipped model's")
@click.option("--lr", type=float, metavar="RATE", help="default: as the shipped model's")
@click.option("--threads", type=at_least_one, default=1, metavar="N")
@click.option(
    "--device", default="auto", metavar="NAME", help="auto (CUDA if there is any), cpu, cuda"
)
def train(
    name: str, out: Path | None, steps: int | None, seed: int | None,
    lr: float | None, threads: int, device: str,
) -> None:  # fmt: skip
    from flows.shipped import shipped_files
    from opd_core.tinyworld.train import train
    from storage.files import make_folder

    out = out or Path("configs/tiny") / name
    make_folder(out)  # before hours of training, not after
    train(name, out, steps=steps, seed=seed, lr=lr, threads=threads, device=device,
          shipped=shipped_files() / "configs" / "tiny",
          report=lambda line: print(line, flush=True))  # fmt: skip


tinyworld = group("tinyworld", "make the tiny world, or train its models", make_world, train)
