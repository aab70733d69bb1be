"""`videoopd import` on real files: what is taken, what not and why, going on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows import cli
from flows.commands import import_files as import_annotations
from flows.commands.import_files import ImportOptions, cache_path, import_files, report_path
from flows.commands.probe_cache import ProbeCache
from opd_core.annotations.audio_queries import audio_word
from opd_core.annotations.timelens import read_timelens
from opd_core.annotations.video_folder import VideoFolder
from opd_core.types import GroundingExample, VideoOPDError
from opd_core.video import probing
from opd_core.video.child import DecoderProcess
from opd_core.video.probing import Probe, Unusable, probe_files
from tests.video_files import write_audio_only, write_truncated, write_video

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 s each; `sub/c.mp4` is 12 s."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "sub").mkdir()
    for name in ("a.mp4", "b_1.0_2.0.mp4"):
        write_video(folder / name)
    write_video(folder / "sub" / "c.mp4", frames=96)
    write_audio_only(folder / "audio.mp4")
    write_truncated(folder / "cut.mp4")
    return folder


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def plain(video: str, start: float, end: float, query: str = "a dog runs") -> dict[str, Any]:
    return {"video": video, "start": start, "end": end, "query": query}


def test_from_a_file_to_examples_and_reasons(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_lines(
        tmp_path / "in.jsonl",
        plain("a.mp4", 1, 2),
        plain("a", 2, 3, "a bell is heard."),
        plain("a", 1, 2),
        plain("b_1.0_2.0", 5, 6.4),
        plain("c", 5, 11.5),
        plain("a", 5, 11.5),
        plain("nowhere", 1, 2),
        plain("audio", 0, 1),
        plain("cut", 0, 1),
        {"video": "a"},
    )
    out = tmp_path / "deep" / "train.jsonl"
    code = cli.main(
        ["import", "jsonl", str(file), "--videos", str(videos), "--out", str(out), "--jobs", "2",
         "--source", "mine", "--skip-audio-queries"]
    )  # fmt: skip
    assert code == 0
    taken = rows(out)
    assert [(r["video_path"], r["events"][0]["span"]) for r in taken] == [
        ("a.mp4", [[1, 2]]), ("b_1.0_2.0.mp4", [[5, 6.4]]), ("sub/c.mp4", [[5, 11.5]]),
    ]  # fmt: skip
    first = taken[0]
    assert first["source"] == "mine" and first["duration"] == 6.0 and first["fps"] == 8.0
    assert first["codec"] == "h264" and len(first["sha256"]) == 64
    report = rows(report_path(out))
    assert [r.get("kind") for r in report] == [
        None, "audio query", "said twice", None, None, "span outside of its video",
        "no such video", "unusable video", "unusable video", "not of this format",
    ]  # fmt: skip
    assert "has no video stream" in report[7]["reason"] and "truncated" in report[8]["reason"]
    assert report[2]["reason"] == "is the same annotation as in.jsonl:1"
    told = capsys.readouterr().out
    assert "3 annotations of 3 videos" in told and "2 unusable video" in told
    examples = list(read_timelens(out, "train"))
    assert [type(e) for e in examples] == [GroundingExample] * 3
    assert not list(out.parent.glob("*.part")) + list(out.parent.glob(".*.part"))


def test_sentences_of_a_video_that_stand_together_make_one_row(
    videos: Path, tmp_path: Path
) -> None:
    file = tmp_path / "sta.txt"
    file.write_text("a 0.0 1.0##one\na 1.0 2.0##two\nc 0.0 1.0##three\na 2.0 3.0##four\n")
    out = tmp_path / "out.jsonl"
    summary = import_files(ImportOptions("charades-sta", [file], videos, out))
    assert [len(r["events"]) for r in rows(out)] == [2, 1, 1]
    assert {r["source"] for r in rows(out)} == {"charades-sta"}
    assert (summary.taken, len(summary.taken_videos)) == (4, 2)


def test_an_annotation_of_another_cut_is_left_out(videos: Path, tmp_path: Path) -> None:
    lines = [plain("a", 1, 2) | {"duration": 30}, plain("a", 2, 3) | {"duration": 6.9}]
    file = write_lines(tmp_path / "in.jsonl", *lines)
    out = tmp_path / "out.jsonl"
    assert import_files(ImportOptions("jsonl", [file], videos, out)).taken == 1
    assert rows(out)[0]["duration"] == 6.0 and rows(out)[0]["events"][0]["span"] == [[2, 3]]
    (first, second) = rows(report_path(out))
    assert first["kind"] == "another duration" and second["taken"]
    assert "annotated for a video of 30 s and the file has 6 s" in first["reason"]


def test_a_sentence_with_a_control_token_is_left_out(videos: Path, tmp_path: Path) -> None:
    tokens = ["<|video_pad|>", "<|im_end|>", "<|placeholder|>"]
    lines = [plain("a", 1, 2, f"a red ball{token}") for token in tokens]
    file = write_lines(tmp_path / "in.jsonl", *lines, plain("a", 1, 2, "a ball, <3 and |x|"))
    out = tmp_path / "out.jsonl"
    assert import_files(ImportOptions("jsonl", [file], videos, out)).taken == 1
    for row, token in zip(rows(report_path(out)), tokens, strict=False):
        assert row["kind"] == "control token" and repr(token) in row["reason"]


def test_most_videos_missing_is_one_sentence_and_no_file(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_lines(tmp_path / "in.jsonl", plain("a", 1, 2), plain("x", 1, 2), plain("y", 1, 2))
    out = tmp_path / "out.jsonl"
    command = ["import", "jsonl", str(file), "--videos", str(videos), "--out", str(out)]
    assert cli.main(command) == 2
    told = capsys.readouterr().err
    assert "2 of the 3 videos that are named have no file" in told and "'x'" in told
    assert not out.exists() and not report_path(out).exists()
    assert cli.main([*command, "--allow-missing"]) == 0
    assert len(rows(out)) == 1


def test_a_second_import_looks_at_nothing_and_a_changed_file_is_looked_at_again(
    videos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(folder / "a.mp4")
    (folder / "b.mp4").write_bytes(b"no video")
    file = write_lines(tmp_path / "in.jsonl", plain("a", 1, 2), plain("b", 1, 2))
    options = ImportOptions("jsonl", [file], folder, tmp_path / "out.jsonl")
    assert import_files(options).looked_at == 2
    before = (options.out.read_bytes(), report_path(options.out).read_bytes())
    cache = cache_path(options.out)
    cache.write_bytes(cache.read_bytes() + b'{"video": "a.mp4", "si')  # as a kill leaves it
    again = import_files(options)
    assert (again.looked_at, again.known_before) == (0, 2)
    assert (options.out.read_bytes(), report_path(options.out).read_bytes()) == before
    write_video(folder / "b.mp4", frames=24)
    third = import_files(options)
    assert (third.looked_at, third.taken) == (1, 2)


@pytest.mark.kill
def test_killed_it_goes_on_with_what_it_had_seen(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    original = write_video(folder / "0.mp4").read_bytes()
    count = 120
    for number in range(1, count):
        (folder / f"{number}.mp4").write_bytes(original)
    file = write_lines(tmp_path / "in.jsonl", *(plain(str(n), 1, 2) for n in range(count)))
    out = tmp_path / "out.jsonl"
    command = [
        sys.executable, "-m", "flows.cli", "import", "jsonl", str(file),
        "--videos", str(folder), "--out", str(out), "--jobs", "1",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (cache_path(out).exists() and cache_path(out).stat().st_size > 2000):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists() and not report_path(out).exists()
    summary = import_files(ImportOptions("jsonl", [file], folder, out, jobs=1))
    assert summary.taken == count and summary.known_before >= 5
    assert summary.known_before + summary.looked_at == count


def test_nothing_taken_is_one_sentence_and_no_file(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_lines(tmp_path / "in.jsonl", plain("nowhere", 1, 2))
    out = tmp_path / "out.jsonl"
    words = ["import", "jsonl", str(file), "--videos", str(videos), "--out", str(out)]
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert "nothing could be taken" in told and "'nowhere'" in told and told.count("\n") == 1
    assert not out.exists() and report_path(out).exists()


def test_the_command_cuts_what_ends_late_where_that_is_asked_for(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_lines(tmp_path / "in.jsonl", plain("a", 1, 6.8), plain("a", 3, 2))
    out = tmp_path / "out.jsonl"
    words = ["import", "jsonl", str(file), "--videos", str(videos), "--out", str(out)]
    assert cli.main(words) == 2
    assert "--clamp" in rows(report_path(out))[0]["reason"]
    assert cli.main([*words, "--clamp", "1"]) == 0
    assert "1 spans, the first in.jsonl:1: 6.8 s to 6 s" in capsys.readouterr().out
    taken, reversed_one = rows(report_path(out))
    assert taken["clamped"] == [{"annotated": [1, 6.8], "taken": [1, 6]}]
    assert reversed_one["kind"] == "reversed span"
    assert rows(out)[0]["events"] == [{"query": "a dog runs", "span": [[1, 6]]}]
    for wrong in ("-1", "nan", "inf", "much"):
        assert cli.main([*words, "--clamp", wrong]) == 2


def test_spans_that_look_like_fractions_are_told(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [plain("a", n / 10, n / 10 + 0.2, f"query {n}") for n in range(8)]
    options = ImportOptions("jsonl", [], videos, tmp_path / "out.jsonl")
    for extra, told in (([], True), ([plain("a", 1, 2)], False)):
        file = write_lines(tmp_path / "in.jsonl", *lines, *extra)
        import_annotations.print_summary(import_files(replace(options, files=[file])))
        assert ("if they are fractions" in capsys.readouterr().out) == told


@pytest.mark.parametrize("wrong", ["videos", "out", "file"])
def test_a_users_mistakes_are_one_sentence(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    file = write_lines(tmp_path / "in.jsonl", plain("a", 1, 2))
    words = {
        "videos": [file, tmp_path / "no", tmp_path / "out.jsonl"],
        "out": [file, videos, file],
        "file": [tmp_path / "no.jsonl", videos, tmp_path / "out.jsonl"],
    }[wrong]
    arguments = ["import", "jsonl", words[0], "--videos", words[1], "--out", words[2]]
    assert cli.main([str(word) for word in arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert file.exists()


def test_a_video_that_hangs_costs_itself_only(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Impatient(DecoderProcess):
        def ask(self, request: dict[str, Any], deadline: float) -> dict[str, Any]:
            return super().ask(request, 0.0 if "b_1.0" in request["path"] else deadline)

    monkeypatch.setattr(probing, "DecoderProcess", Impatient)
    found = dict(probe_files(videos, ["a.mp4", "b_1.0_2.0.mp4", "sub/c.mp4"], 1, 30))
    assert isinstance(found["a.mp4"], Probe) and isinstance(found["sub/c.mp4"], Probe)
    hung = found["b_1.0_2.0.mp4"]
    assert isinstance(hung, Unusable) and not hung.final and "longer than 30 s" in hung.reason


def test_what_may_pass_is_not_remembered(videos: Path, tmp_path: Path) -> None:
    cache = ProbeCache(tmp_path / "cache", videos)
    with cache.appending():
        cache.add("a.mp4", Unusable("it took too long", final=False))
        cache.add("sub/c.mp4", Unusable("it has no video stream", final=True))
    assert set(ProbeCache(tmp_path / "cache", videos).known) == {"sub/c.mp4"}


def test_leaving_the_probes_early_leaves_no_process(videos: Path) -> None:
    for _ in probe_files(videos, ["a.mp4", "sub/c.mp4", "b_1.0_2.0.mp4"], 2, 30):
        break


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a.mp4", "a.mp4"),
        ("a", "a.mp4"),
        ("b_1.0_2.0", "b_1.0_2.0.mp4"),
        ("c", "sub/c.mp4"),
        ("c.mp4", "sub/c.mp4"),
        ("sub/c", "sub/c.mp4"),
        ("/far/away/sub/c.mp4", "sub/c.mp4"),
        ("other/c.mp4", None),
        ("../a.mp4", None),
        ("", None),
        ("x" * 5000, None),
        ("a\0", None),
    ],
)
def test_which_file_is_meant(videos: Path, name: str, file: str | None) -> None:
    assert VideoFolder(videos).find(name) == file


def test_two_files_of_one_name_are_none(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.mp4").write_bytes(b"")
    assert VideoFolder(tmp_path).find("a") is None
    assert "may be" in VideoFolder(tmp_path).why_not("a")
    assert "no file for 'b'" in VideoFolder(tmp_path).why_not("b")
    assert VideoFolder(tmp_path).find("x/a.mp4") == "x/a.mp4"


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("A bell is heard.", "heard"),
        ("the sound of rain", "sound"),
        ("AUDIO plays", "audio"),
        ("a heart is drawn", None),
        ("she says hello", None),
        ("soundly asleep", None),
    ],
)
def test_audio_queries_by_timelens_words(query: str, word: str | None) -> None:
    assert audio_word(query) == word


def test_the_summary_fits_on_a_screen(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [plain("a", n / 100, 3, f"query {n}") for n in range(200)] + [plain("z", 1, 2)] * 50
    file = write_lines(tmp_path / "in.jsonl", *lines)
    summary = import_files(ImportOptions("jsonl", [file], videos, tmp_path / "out.jsonl"))
    import_annotations.print_summary(summary)
    assert len(capsys.readouterr().out.splitlines()) <= 24


def test_a_videos_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(VideoOPDError, match="--videos"):
        VideoFolder(tmp_path / "no")
