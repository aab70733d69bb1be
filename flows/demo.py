"""`videoopd demo`: the tiny world, three rounds on it, and what to look at next.

It runs `configs/tiny.toml` as any other config is run; only the videos are made first. Running it
again continues the same run with three more rounds. Installed from a wheel, it first copies the
configs and the tiny models into `videoopd-demo/`, which is then a project folder like a checkout.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flows.console.progress import progress
from flows.launch import round_flow
from flows.server.prefect_settings import project_root
from flows.shipped import checkout, shipped_files
from opd_core.config.load import load_config
from opd_core.types import VideoOPDError
from storage.files import disk_troubles, make_folder, short, write_bytes_whole

if TYPE_CHECKING:
    from flows.summaries import RoundSummary
    from opd_core.tinyworld.world import World
    from opd_core.tinyworld.wrongness import Annotated, Judged

FOLDER = "videoopd-demo"
"""Made in the current folder, outside a checkout."""
ROUNDS = 3
WORLD_SEED = 0
ANNOTATIONS = "loose"
TRAIN_VIDEOS = 900
"""About 2,600 sentences: more than three rounds draw."""
EVAL_VIDEOS = 100


def demo() -> None:
    """Make the world if it is not there, run three rounds, print each and what to try next."""
    config = config_file()
    world = make_tiny_world(
        load_config(config).data.train.parent, WORLD_SEED, annotations=ANNOTATIONS
    )
    flow = round_flow()
    from flows.console.report import print_rounds

    done: list[RoundSummary] = []
    for number in range(1, ROUNDS + 1):
        summary = flow(str(config), rounds=1, overrides=[])
        done += summary.rounds
        print_rounds(summary.run_path, done, last=number == ROUNDS)
    run_path = Path(summary.run_path)
    print(_what_was_filtered(run_path, world, load_config(config).focus.min_teacher_iou))
    _next_steps(run_path)


def make_tiny_world(
    folder: Path,
    seed: int,
    train_videos: int | None = None,
    eval_videos: int | None = None,
    annotations: str = "clean",
    scene: str = "short",
) -> World:
    """Make the synthetic videos in `folder`; a world that is there already is left as it is.

    Raises `VideoOPDError` when the folder holds a world made otherwise.
    """
    from opd_core.tinyworld.world import make_world

    train_videos, eval_videos = train_videos or TRAIN_VIDEOS, eval_videos or EVAL_VIDEOS
    total = train_videos + eval_videos
    make_folder(folder)
    with progress("tiny world", total) as advance:
        seen = 0

        def made(done: int, _: int) -> None:
            nonlocal seen
            advance(done - seen)
            seen = done

        try:
            world = make_world(folder, seed, train_videos, eval_videos, made, annotations, scene)
        except ValueError as error:
            raise VideoOPDError(str(error)) from None
    print(f"tiny world: {train_videos} + {eval_videos} videos in {short(folder)}", flush=True)
    return world


def config_file() -> Path:
    """The demo's config: the project's, or a copy of what this installed program ships.

    Raises `VideoOPDError` where the project in this folder has none.
    """
    file = project_root() / "configs" / "tiny.toml"
    if not file.is_file():
        if (Path.cwd() / "prefect.toml").is_file() or checkout():
            raise VideoOPDError(f"there is no {file}; run `videoopd demo` in the project's folder")
        file = copy_shipped(Path(FOLDER).absolute()) / "configs" / "tiny.toml"
        print(f"configs, runs and worlds of the demo are in {FOLDER}", flush=True)
    return short(file)


def copy_shipped(folder: Path) -> Path:
    """Copy configs and tiny models into `folder`; a file that is there already is the user's."""
    for source in sorted(shipped_files().rglob("*")):
        target = folder / source.relative_to(shipped_files())
        if source.is_dir() or target.exists():
            continue
        make_folder(target.parent)
        with disk_troubles(target.parent):
            write_bytes_whole(target, source.read_bytes())
    return folder


def _what_was_filtered(run_path: Path, world: World, min_teacher_iou: float) -> str:
    """How well TRPV tells wrong annotations, in a sentence; nothing else here reads the truth."""
    from opd_core.tinyworld.wrongness import BAD_BELOW, filtering_at, paired

    judged = read_judged(run_path, paired(world.train, world.truth))
    dropped = filtering_at(min_teacher_iou, judged)
    wrong = sum(one.annotation_iou < BAD_BELOW for one in judged) / len(judged)
    of_those = "" if dropped.precision is None else f", {dropped.precision:.0%} of those"
    return (
        f"TRPV: the teacher's answers fit {dropped.dropped:.0%} of {len(judged):,} annotations too "
        f"little; wrong (IoU with the truth below {BAD_BELOW}) are {wrong:.0%} of all{of_those}"
    )


def read_judged(path: Path, world: Mapping[str, Annotated]) -> list[Judged]:
    """The sentences of a world that the teacher answered in the run at `path`."""
    import polars as pl

    from opd_core.tinyworld.wrongness import Judged
    from storage.runs.run import Run

    teacher = Run.open(path).teacher_predictions().group_by("example_id").agg(pl.col("iou").mean())
    return [
        Judged(iou, world[example].iou)
        for example, iou in teacher.sort("example_id").collect().select("example_id", "iou").rows()
    ]


def _next_steps(run_path: Path) -> None:
    import polars as pl

    from storage.runs.run import Run

    lowest = (
        Run.open(run_path)
        .teacher_scores()
        .select("rollout_id", mean=pl.col("teacher_logprobs").list.mean())
        .sort("mean", "rollout_id")
        .head(1)
        .collect()
    )
    rollout_id = lowest.item(0, "rollout_id") if lowest.height else "ROLLOUT_ID"
    run = short(run_path)
    sql = (
        "SELECT policy_version, count(*) AS rollouts, avg(student_iou) AS student_iou "
        "FROM rollouts GROUP BY policy_version ORDER BY policy_version"
    )
    videoopd = _command()
    print(f"The run is in {run}. To try next:")
    print(f"  {videoopd} view {run}")
    print(f'  {videoopd} query {run} "{sql}"')
    print(f"  {videoopd} show {run} {rollout_id}")


def _command() -> str:
    """How this program is called from this shell: `make demo` runs it from an inactive .venv."""
    program = Path(sys.argv[0])
    if shutil.which("videoopd") or program.name != "videoopd":
        return "videoopd"
    return str(short(program))
