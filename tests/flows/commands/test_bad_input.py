"""What a user can give wrongly: a clear error, or a `quarantine` row while the rest goes on.

Never a wrong row, never a hang, never a traceback. Each case is a whole run; the ones that end
before a stage go through the real command, which says one sentence and ends with code 2.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import stages
from flows.console.report import rounds_table
from flows.numbers.outcome import REASONS_TOLD
from flows.stage.prepare import opened
from opd_core.tinyworld.world import World
from opd_core.types import VideoOPDError
from storage.runs.run import Run
from storage.tables.schemas import TABLES
from tests import video_files
from tests.flows.conftest import WriteConfig
from tests.flows.kill_points import run_without_server
from tests.stages_before import stages_before

SCRIPT = Path(__file__).resolve().parents[1] / "kill_points.py"
UNIFORM = {"focus.curriculum": "uniform", "rollout.examples_per_round": 20}


def said(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a command that failed as it should."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.strip()]
    assert line.startswith("videoopd: ")
    return line


def quarantine(folder: Path) -> dict[str, str]:
    """video path -> reason."""
    found = Run.open(folder / "run").quarantine().collect()
    return dict(found.select("video_path", "reason").iter_rows())


def count(folder: Path) -> dict[str, int]:
    run = Run.open(folder / "run")
    return {name: run.tables.scan(name).collect().height for name in TABLES}


# --- configs and folders, through the real command ----------------------------------------------


def test_an_unknown_key_names_the_nearest(
    command: Any, write_config: WriteConfig, tmp_path: Path
) -> None:
    config = write_config(tmp_path)
    line = said(command("run", config, "--set", "update.learning_rat=1"))
    assert "unknown key 'update.learning_rat'" in line and "'learning_rate'" in line
    assert not (tmp_path / "run").exists()


def test_a_config_that_is_not_there(command: Any, tmp_path: Path) -> None:
    assert "there is no config at" in said(command("run", tmp_path / "none.toml"))


@pytest.mark.server
def test_a_missing_model_folder(command: Any, write_config: WriteConfig, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    line = said(command("run", write_config(tmp_path, {"student.path": nowhere})))
    assert f"no model folder at {nowhere}" in line and "student.path" in line
    assert "no model folder at" in refused(write_config(tmp_path, {"teacher.path": nowhere}))
    assert not (tmp_path / "run").exists()


# --- models, in this process ---------------------------------------------------------------------


def refused(config: Path) -> str:
    with pytest.raises(VideoOPDError) as error:
        run_without_server(str(config))
    return str(error.value)


def test_a_model_folder_without_weights(
    write_config: WriteConfig, models: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(models["teacher"], tmp_path / "teacher")
    (tmp_path / "teacher" / "model.safetensors").unlink()
    said = refused(write_config(tmp_path, {"teacher.path": tmp_path / "teacher"}))
    assert "teacher holds no *.safetensors" in said


def test_a_model_cut_short(
    write_config: WriteConfig, models: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(models["student"], tmp_path / "student")
    weights = tmp_path / "student" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    said = refused(write_config(tmp_path, {"student.path": tmp_path / "student"}))
    assert "is not a whole safetensors file" in said


def test_different_vocabularies(
    write_config: WriteConfig, models: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(models["teacher"], tmp_path / "teacher")
    path = tmp_path / "teacher" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    a, b = list(vocabulary)[100:102]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    path.write_text(json.dumps(content))
    said = refused(write_config(tmp_path, {"teacher.path": tmp_path / "teacher"}))
    assert "have different vocabularies (2 tokens differ" in said
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def poisoned(
    models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """`poisoned("student")`: its folder with a last layer so large that its sums are no numbers.

    (Weights that are NaN themselves are refused: `test_broken_models.py`.)
    """

    def make(role: str) -> Path:
        import torch
        from safetensors.torch import load_file, save_file

        folder = tmp_path_factory.mktemp("poisoned") / role
        shutil.copytree(models[role], folder)
        weights = load_file(folder / "model.safetensors")
        name = [n for n in weights if n.endswith("mlp.down_proj.weight")][-1]
        weights[name].fill_(torch.finfo(weights[name].dtype).max)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_nan_log_probs_never_make_a_row(
    write_config: WriteConfig, poisoned: Callable[[str], Path], tmp_path: Path, role: str
) -> None:
    said = refused(write_config(tmp_path, {f"{role}.path": poisoned(role), **UNIFORM}))
    assert "log-prob" in said and "nan" in said
    if role == "student":
        assert not (tmp_path / "run").exists(), "the first answer was refused: nothing to keep"
        return
    counts = count(tmp_path)
    assert counts["teacher_scores"] == counts["updates"] == 0
    assert counts["rollouts"] > 0
    assert all("log-prob of token 0 is nan" in r for r in quarantine(tmp_path).values())


def test_a_nan_of_the_teachers_scores_is_set_aside_while_the_rest_goes_on(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A score that is no number for one rollout: quarantined by its id, and never trained on."""
    from opd_core.model.tree_model import TreeModel

    config = write_config(tmp_path, UNIFORM)
    with opened(str(config)) as work:
        for name in stages_before("score"):
            getattr(stages, name).fn(work, work.policy())
        spoil = Run.open(tmp_path / "run").rollouts().collect()["rollout_id"][3]
        whole = TreeModel.completion_hidden

        def spoiled(self: TreeModel, *args: Any) -> Iterator[Any]:
            for keys, token_ids, hidden in whole(self, *args):
                if spoil in keys:
                    before = keys[: keys.index(spoil)]
                    hidden[sum(len(args[0].pack.completions[k]) for k in before)] = float("nan")
                yield keys, token_ids, hidden

        with monkeypatch.context() as patch:
            patch.setattr(TreeModel, "completion_hidden", spoiled)
            stages.score.fn(work, work.policy())
        for name in ("score", "focus", "update"):
            getattr(stages, name).fn(work, work.policy())
    run = Run.open(tmp_path / "run")
    assert run.quarantine().collect()["item_id"].to_list() == [spoil]
    scored = set(run.teacher_scores().collect()["rollout_id"])
    assert len(scored) == 39 and spoil not in scored
    selections = run.selections().collect().filter(selected=False)
    assert selections.select("rollout_id", "reason").rows() == [(spoil, "no teacher score")]
    assert run.updates().collect()["rollouts"].to_list() == [39]


# --- annotations -------------------------------------------------------------------------------


def annotate(path: Path, lines: list[Any]) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(text + "\n" for text in texts))
    return path


def line_of(video: str, *events: tuple[str, float, float], duration: float = 6.0) -> dict[str, Any]:
    return {
        "source": "test",
        "video_path": video,
        "duration": duration,
        "events": [{"query": query, "span": [[start, end]]} for query, start, end in events],
    }


def test_bad_annotations_are_set_aside_and_the_rest_goes_on(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("a.mp4", "b.mp4"):
        video_files.write_video(videos / name)
    train = annotate(
        tmp_path / "annotations.jsonl",
        [
            line_of("a.mp4", ("a red one", 1, 3), ("backwards", 4, 2), ("no length", 2, 2)),
            line_of("b.mp4", ("too late", 5, 9), ("before", -2, 1), ("a blue one", 2, 6)),
            "this is no JSON",
            line_of("../outside.mp4", ("elsewhere", 1, 2)),
        ],
    )
    settings = {"data.train": train, "data.videos": videos, **UNIFORM}
    evaluated = annotate(tmp_path / "eval.jsonl", [line_of("b.mp4", ("a green one", 0, 2))])
    run_without_server(str(write_config(tmp_path, settings | {"data.eval": evaluated})))
    run = Run.open(tmp_path / "run")
    reasons = dict(run.quarantine().select("item_id", "reason").collect().rows())
    assert reasons.keys() == {
        f"annotations.jsonl:{place}" for place in ("1#1", "1#2", "2#0", "2#1", "3", "4")
    }
    assert "the span 4 - 2 s is reversed" in reasons["annotations.jsonl:1#1"]
    assert "lies outside of the video's 6 s" in reasons["annotations.jsonl:2#0"]
    queries = run.examples().collect().filter(split="train")["query"].to_list()
    assert sorted(queries) == ["a blue one", "a red one"]
    assert count(tmp_path)["rollouts"] == 2 * 2 and count(tmp_path)["updates"] == 1


def test_no_usable_annotation_is_an_error(write_config: WriteConfig, tmp_path: Path) -> None:
    train = annotate(tmp_path / "train.jsonl", [line_of("a.mp4", ("backwards", 4, 2))])
    said = refused(write_config(tmp_path, {"data.train": train}))
    assert f"{train} holds no usable example" in said and "it ends at 2 s, not after" in said


# --- videos -------------------------------------------------------------------------------------


BAD_VIDEOS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing.mp4": (lambda path: None, "there is no file"),
    "empty.mp4": (lambda path: path.touch(), "is empty (0 bytes)"),
    "truncated.mp4": (video_files.write_truncated, "truncated.mp4"),
    "noindex.mp4": (video_files.write_without_index, "noindex.mp4"),
    "audio.mp4": (video_files.write_audio_only, "no video"),
    "zero.mp4": (video_files.write_zero_frames, "zero.mp4"),
    "fifo.mp4": (os.mkfifo, "is no regular file"),
    "folder.mp4": (Path.mkdir, "is no regular file"),
    "text.mp4": (lambda path: path.write_text("no video at all\n" * 99), "text.mp4"),
}


@pytest.fixture
def mixed(write_config: WriteConfig, tmp_path: Path) -> Path:
    """A config: three good videos, and every bad one, each with two sentences."""
    videos = tmp_path / "videos"
    videos.mkdir()
    good = ["good0.mp4", "good1.mp4", "good2.mp4"]
    for name in good:
        video_files.write_video(videos / name)
    for name, (make, _) in BAD_VIDEOS.items():
        make(videos / name)
    lines = [line_of(name, ("one", 0, 2), ("two", 1, 4)) for name in sorted([*good, *BAD_VIDEOS])]
    settings = {
        "data.train": annotate(tmp_path / "train.jsonl", lines),
        "data.eval": annotate(
            tmp_path / "eval.jsonl",
            [line_of("good0.mp4", ("three", 0, 3)), line_of("empty.mp4", ("four", 1, 3))],
        ),
        "data.videos": videos,
        "rollout.examples_per_round": 100,
        "focus.curriculum": "uniform",
    }
    return write_config(tmp_path, settings)


def test_bad_videos_are_set_aside_and_the_rest_goes_on(mixed: Path, tmp_path: Path) -> None:
    summary = run_without_server(str(mixed), 2)
    reasons = quarantine(tmp_path)
    assert reasons.keys() == BAD_VIDEOS.keys()
    for name, (_, reason) in BAD_VIDEOS.items():
        assert reason in reasons[name]
    counts = count(tmp_path)
    assert counts["draws"] == 24 + 6 + 2, "the second round tries only the missing file again"
    assert counts["rollouts"] == counts["teacher_scores"] == 2 * 6 * 2
    assert counts["updates"] == 2
    assert [r.eval_examples for r in summary.rounds] == [1, 1, 1]
    # 18 in rollout, of them the 2 of the missing file again, and in each round one to be evaluated.
    assert [r.left_out for r in summary.rounds] == [None, 19, 3]
    assert [r.annotations_left_out for r in summary.rounds] == [0, 0, 0]
    assert [r.no_span for r in summary.rounds] == [1.0, 1.0, 1.0], "untrained models answer nothing"
    assert [r.rollouts_without_span for r in summary.rounds] == [None, 12, 12]
    left_out = [note for note in summary.rounds[1].notes if note.startswith("left out: ")]
    assert len(left_out) == REASONS_TOLD + 1 and "other reasons" in left_out[-1]
    printed = rows_of(rounds_table(summary.rounds[1:], 0, {"parse_failures": 1.0}))
    assert printed["eval answers without a span"] == ["1.000", "1.000", "1.000"]
    assert printed["rollouts without a span"] == ["", "12", "12"]
    assert printed["left out in the round"] == ["", "19", "3"]
    assert printed["annotations left out"] == ["", "0", "0"]


def rows_of(table: Any) -> dict[str, list[str]]:
    names, *columns = ([str(cell) for cell in column.cells] for column in table.columns)
    return dict(zip(names, map(list, zip(*columns, strict=True)), strict=True))


def test_annotations_that_are_left_out_are_counted_and_told(
    write_config: WriteConfig, tmp_path: Path, tiny_world: World
) -> None:
    bad = [line_of("a.mp4", ("backwards", 4, 2), ("b", 9, 1)), line_of("c.mp4", ("late", 90, 99))]
    train = tmp_path / "train.jsonl"
    annotate(train, bad)
    train.write_text(tiny_world.train.read_text() + train.read_text())
    summary = run_without_server(str(write_config(tmp_path, {"data.train": train})))
    assert [r.annotations_left_out for r in summary.rounds] == [3, 3]
    assert any(note.startswith("left out: 2 in import: the first: ") and "it ends at 2 s, not after"
               in note for note in summary.rounds[0].notes), summary.rounds[0].notes  # fmt: skip


@pytest.mark.in_turn
def test_a_decoder_that_hangs_costs_its_timeout_and_its_video(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    """A FIFO is refused before it is opened, so the child itself waits, as decord does for some."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("good.mp4", "hangs.mp4"):
        video_files.write_video(videos / name)
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import sys, time\n"
        "if sys.argv[:1] == ['-m']:\n"  # the decoding child
        "    import av\n"
        "    whole = av.open\n"
        "    def hanging(file, *args, **kwargs):\n"
        "        while str(file).endswith('hangs.mp4'):\n"
        "            time.sleep(1)\n"
        "        return whole(file, *args, **kwargs)\n"
        "    av.open = hanging\n"
    )
    lines = [line_of(name, ("one", 0, 2)) for name in ("good.mp4", "hangs.mp4")]
    settings = {
        "data.train": annotate(tmp_path / "train.jsonl", lines),
        "data.eval": annotate(tmp_path / "eval.jsonl", [line_of("good.mp4", ("three", 0, 3))]),
        "data.videos": videos,
        "video.decode_timeout_seconds": 3.0,
        "frames.enabled": False,  # both files have the same bytes: the store would answer
        **UNIFORM,
    }
    config = write_config(tmp_path, settings)
    path = os.pathsep.join([str(hook), os.environ.get("PYTHONPATH", "")])
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "before finish", "9", str(config)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began > 3.0
    assert quarantine(tmp_path) == {"hangs.mp4": "hangs.mp4: decoding took longer than 3 s"}
    assert count(tmp_path)["rollouts"] == 2 and count(tmp_path)["updates"] == 1


def test_no_usable_video_at_all_is_an_error_that_says_why(
    write_config: WriteConfig, tmp_path: Path
) -> None:
    said = refused(write_config(tmp_path, {"data.videos": tmp_path / "elsewhere"}))
    assert f"the folder of videos {tmp_path / 'elsewhere'} is not there" in said
    assert not (tmp_path / "run").exists()


def test_a_video_that_goes_away_before_it_is_scored(mixed: Path, tmp_path: Path) -> None:
    """Its rollouts are set aside, with the reason; the round goes on with the others."""
    from opd_core.prompts.batches import forget_decoded

    with opened(str(mixed)) as work:
        for name in stages_before("score"):
            getattr(stages, name).fn(work, work.policy())
        (tmp_path / "videos" / "good1.mp4").unlink()
        forget_decoded()  # as in a process that was started again
        for name in ("score", "focus", "update", "score", "focus"):
            getattr(stages, name).fn(work, work.policy(0))
        assert work.policy().version == 1
    run = Run.open(tmp_path / "run")
    assert count(tmp_path)["rollouts"] == 12 and count(tmp_path)["teacher_scores"] == 8
    left_out = run.selections().collect().filter(selected=False)
    assert left_out["reason"].to_list() == ["no teacher score"] * 4
    assert "there is no file" in quarantine(tmp_path)["good1.mp4"]


# --- a full disk ----------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB, or a skip where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small file system here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.mark.parametrize("stage", ["rollout", "update"])
def test_a_full_disk_is_one_sentence_and_free_space_completes_the_round(
    write_config: WriteConfig, tmp_path: Path, small_disk: Path, stage: str
) -> None:
    config = write_config(tmp_path, {"run.path": small_disk / "run"} | UNIFORM)
    filler = small_disk / "filler"
    with opened(str(config)) as work:
        for name in stages_before("evaluate"):
            if name == stage:
                fill(filler, leave=4096 if stage == "rollout" else 300_000)
                with pytest.raises(VideoOPDError, match="its disk is full; free some space"):
                    getattr(stages, name).fn(work, work.policy())
                assert work.policy().version == 0
                break
            getattr(stages, name).fn(work, work.policy())
    filler.unlink()
    run_without_server(str(config))
    run = Run.open(small_disk / "run")
    assert run.current_policy().version == 1
    assert (
        run.rollouts().collect()["rollout_id"].n_unique() == run.rollouts().collect().height == 40
    )
    assert {p.name for p in (small_disk / "run" / "policies").iterdir()} == {"v1"}


def fill(path: Path, leave: int) -> None:
    """Write until only `leave` bytes are free."""
    free = shutil.disk_usage(path.parent).free
    with path.open("wb") as file:
        file.write(b"\0" * (free - leave))


@pytest.mark.server
def test_a_full_disk_ends_the_command_with_code_2(
    command: Any, write_config: WriteConfig, tmp_path: Path, small_disk: Path, prefect_api: str
) -> None:
    # No frames, whose store would add a warning where it is what does not fit.
    settings = {"run.path": small_disk / "run", "frames.enabled": False}
    config = write_config(tmp_path, settings)
    fill(small_disk / "filler", leave=200_000)
    done = command("run", config, server=prefect_api)
    assert "its disk is full" in said(done)
    (small_disk / "filler").unlink()
    assert command("run", config, server=prefect_api).returncode == 0
