"""The command line: two rounds through the real command, and one sentence for every mistake."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import polars as pl
import pytest

from flows import cli, demo
from flows.commands import looking, show
from flows.console import report
from flows.console.progress import progress
from opd_core.model.token_text import token_texts
from opd_core.tinyworld.world import World
from opd_core.types import VideoOPDError
from tests import forked
from tests.tiny_config import as_toml, tiny_settings

ROOT = Path(__file__).resolve().parents[3]


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "flows.cli", *map(str, words)]


def videoopd(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The real command, in a process of its own."""
    return forked.run(
        command(*words),
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_world: World) -> tuple[Path, Path, str]:
    """(config, run, output) after two rounds by `videoopd run`."""
    folder = tmp_path_factory.mktemp("cli")
    config = folder / "tiny.toml"
    config.write_text(as_toml(tiny_settings(folder / "run", tiny_world)))
    done = videoopd("run", config, "--rounds", 2, "--set", "focus.top_k=3")
    assert done.returncode == 0, done.stderr
    return config, folder / "run", done.stdout


@pytest.mark.server
def test_two_rounds_by_the_real_command(finished: tuple[Path, Path, str]) -> None:
    _, _, output = finished
    last = output[output.rindex("round 1") :]
    assert "round 2" in output
    for word in ("eval mIoU", "R1@0.5", "reverse KL", "tokens sampled", "update, s"):
        assert word in last


@pytest.mark.server
def test_status_knows_the_policies_and_what_is_next(finished: tuple[Path, Path, str]) -> None:
    config, run, _ = finished
    for asked in (config, run):
        told = videoopd("status", asked)
        assert told.returncode == 0, told.stderr
        assert "policy    2" in told.stdout
        assert "nothing drawn yet" in told.stdout
        assert "teacher_predictions" in told.stdout
        # By its folder, the run says the config and the overrides that it was run with.
        hint = config if asked == config else f"{config} --set focus.top_k=3"
        assert f"continue  videoopd run {hint}\n" in told.stdout


@pytest.mark.server
def test_query_in_every_format(finished: tuple[Path, Path, str], tmp_path: Path) -> None:
    _, run, _ = finished
    sql = "SELECT rollout_id, student_iou, completion_token_ids FROM rollouts ORDER BY rollout_id"
    rows = json.loads(videoopd("query", run, sql, "--format", "json").stdout)
    assert len(rows) == 2 * 8 * 2
    assert isinstance(rows[0]["completion_token_ids"][0], int)

    lines = list(csv.DictReader(io.StringIO(videoopd("query", run, sql, "--format", "csv").stdout)))
    assert [line["rollout_id"] for line in lines] == [row["rollout_id"] for row in rows]
    assert json.loads(lines[0]["completion_token_ids"]) == rows[0]["completion_token_ids"]

    file = tmp_path / "rows.parquet"
    assert videoopd("query", run, sql, "--format", "parquet", "--out", file).returncode == 0
    assert pl.read_parquet(file).to_dicts() == rows

    table = videoopd("query", run, "SELECT count(*) AS n FROM rollouts").stdout
    assert "| n " in table
    assert "| 32" in table


@pytest.mark.server
def test_show_prints_spans_and_tokens(finished: tuple[Path, Path, str]) -> None:
    _, run, _ = finished
    sql = "SELECT rollout_id FROM teacher_scores ORDER BY rollout_id LIMIT 1"
    rollout_id = json.loads(videoopd("query", run, sql, "--format", "json").stdout)[0]["rollout_id"]
    shown = videoopd("show", run, rollout_id)
    assert shown.returncode == 0, shown.stderr
    for word in ("question", "answer", "truth", "student", "teacher 1", "sampling", "advantage"):
        assert word in shown.stdout
    assert "\x1b" not in shown.stdout


@pytest.mark.server
def test_an_unknown_rollout_is_answered_with_one_that_exists(
    finished: tuple[Path, Path, str],
) -> None:
    _, run, _ = finished
    done = videoopd("show", run, "v0-nothing-0")
    assert done.returncode == 2
    assert "there is 'v" in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "nowhere.toml"], "there is no config at nowhere.toml"),
        (["run", "{config}", "--set", "focus.topk=3"], "did you mean 'top_k'"),
        (["run", "{config}", "--set", "focus"], "is not section.key=value"),
        (["run", "{config}", "--set", "rollout.temperature=0.7"], "rollout.temperature = 1.0"),
        (["status", "nowhere"], "there is nothing of that name"),
        (["status", "{config}"], "videoopd run"),
        (["query", "nowhere", "SELECT 1"], "is no run"),
        (["show", "nowhere", "v0-x-0"], "is no run"),
    ],
)
def test_a_mistake_is_one_sentence_and_code_2(
    words: list[str],
    told: str,
    tiny_config: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = str(tiny_config())
    assert cli.main([word.replace("{config}", config) for word in words]) == 2
    message = capsys.readouterr().err
    assert message.startswith("videoopd: ")
    assert message.count("\n") == 1
    assert told in message


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_missing_model_is_found_before_a_server_starts(
    role: str,
    tiny_config: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("flows.launch.connect", lambda: pytest.fail("a server was started"))
    config = tiny_config({f"{role}.path": "nowhere"})
    assert cli.main(["run", str(config)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("videoopd: there is no model folder at ")
    assert message.rstrip().endswith(f"correct {role}.path in {config}")


@pytest.mark.server
def test_a_mistake_found_in_a_flow_is_told_once(
    tiny_config: Callable[..., Path], tmp_path: Path
) -> None:
    config = tiny_config({"data.train": str(tmp_path / "nothing.jsonl")})
    done = videoopd("run", config)
    assert done.returncode == 2
    assert done.stderr.startswith("videoopd: ") and "nothing.jsonl" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stdout


def test_a_server_that_does_not_answer_is_named_with_the_command_to_run(
    tiny_config: Callable[..., Path],
) -> None:
    done = videoopd("run", tiny_config(), PREFECT_API_URL="http://127.0.0.1:9/api")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "make up" in done.stderr


def test_an_unknown_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**given: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(looking.status, "callback", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["status", "somewhere"])


def test_control_c_that_polars_turned_into_a_panic_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def panicking(**given: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise pl.exceptions.PanicException("called unwrap on an Err value") from error

    monkeypatch.setattr(looking.status, "callback", panicking)
    before = signal.getsignal(signal.SIGINT)
    assert cli.main(["status", "somewhere"]) == 130
    assert "continue with the same command" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.server
def test_control_c_says_how_to_continue(tiny_config: Callable[..., Path]) -> None:
    process = forked.Popen(
        command("run", tiny_config({"rollout.examples_per_round": 64}), "--rounds", 50),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = tiny_config().parent / "run" / "tables" / "rollouts.lance" / "data"
    wait_for(lambda: folder.is_dir() and any(folder.iterdir()), process)
    told = ""
    for _ in range(3):  # a library's callback may swallow one; a person presses again
        process.send_signal(signal.SIGINT)
        try:
            _, told = process.communicate(timeout=40)
            break
        except subprocess.TimeoutExpired:
            continue
    assert process.returncode == 130
    assert "continue with the same command" in told


def wait_for(
    ready: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120.0
) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < end
        time.sleep(0.1)


def test_what_a_model_sampled_cannot_move_the_cursor() -> None:
    assert report.printable("a\x1b[2Jb\n") == "a\\x1b[2Jb\n"


@pytest.mark.parametrize(
    ("start", "end", "filled"),
    [(0.0, 6.0, (0, 30)), (6.0, 12.0, (30, 60)), (3.0, 3.01, (15, 16)), (11.99, 99.0, (59, 60))],
)
def test_a_span_fills_its_share_of_the_bar(
    start: float, end: float, filled: tuple[int, int]
) -> None:
    line = show.span_line("truth", start, end, 12.0, "", "green").plain
    bar = line[11 : 11 + show.BAR_CELLS]
    first, last = filled
    assert bar == "·" * first + "█" * (last - first) + "·" * (show.BAR_CELLS - last)


def test_an_absent_span_is_an_empty_bar() -> None:
    line = show.span_line("student", None, None, 12.0, "IoU 0.00", "cyan").plain
    assert "█" not in line
    assert "no span" in line


def test_tokens_have_their_own_text() -> None:
    folder = ROOT / "configs" / "tiny" / "student"
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    special = next(t for t in tokens if t["content"] == "<|im_end|>")
    assert token_texts(folder, [special["id"], 10**6]) == ["<|im_end|>", "<1000000>"]
    with pytest.raises(VideoOPDError, match=r"tokenizer\.json"):
        token_texts(ROOT, [1])


def test_our_warnings_are_sentences_and_a_librarys_keeps_its_place() -> None:
    ours, other = cli.__file__, "/somewhere/library.py"
    with cli._warnings_as_sentences():
        said = warnings.formatwarning("the branch moved", RuntimeWarning, ours, 1)
        assert said == "videoopd: the branch moved\n"
        assert f"{other}:1: " in warnings.formatwarning("overflow", RuntimeWarning, other, 1)
    assert f"{ours}:1: " in warnings.formatwarning("overflow", RuntimeWarning, ours, 1)


def test_off_a_terminal_progress_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VIDEOOPD_PROGRESS", "1")
    clock = iter([0.0, 1.0, 11.0, 12.0])
    monkeypatch.setattr("flows.console.progress.time.monotonic", lambda: next(clock))
    with progress("rollout", 4) as advance:
        for _ in range(3):
            advance(1)
    assert capsys.readouterr().err == "rollout: 2/4, about 11 s left\n"


def test_a_line_says_how_the_last_step_was_and_what_was_made_before_is_no_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VIDEOOPD_PROGRESS", "1")
    clock = iter([0.0, 20.0, 30.0, 40.0])
    monkeypatch.setattr("flows.console.progress.time.monotonic", lambda: next(clock))
    with progress("update", 10) as advance:
        advance(4, made_before=True)
        advance(1, saying="loss 0.5")
        advance(1, saying="loss 0.4")
    assert capsys.readouterr().err == (
        "update: 5/10, about 50 s left; loss 0.5\nupdate: 6/10, about 40 s left; loss 0.4\n"
    )


BAR = """
import time
from flows.console.progress import progress
with progress("update", 12) as advance:
    advance(4, made_before=True)
    for number in range(8):
        time.sleep(0.1)
        advance(1, saying="loss 0.628, KL 0.710, 1,216 tok/s")
"""


@pytest.mark.parametrize("quiet", [False, True])
def test_a_bar_of_80_columns_has_loss_kl_speed_and_the_time_left(quiet: bool) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    added = {"TERM": "xterm-256color", "VIDEOOPD_QUIET": "1" if quiet else "0"}
    process = subprocess.Popen(
        [sys.executable, "-c", BAR], stderr=slave, env=kept | added, cwd=ROOT
    )
    os.close(slave)
    shown = b""
    with suppress(OSError):
        while part := os.read(master, 4096):
            shown += part
    os.close(master)
    assert process.wait() == 0
    lines = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", shown).decode().replace("\r", "\n").split("\n")
    if quiet:
        assert lines == [""]
        return
    assert max(map(len, lines)) <= 80
    wanted = r"update +\S+ 1[012]/12 0:00:0\d left 0:00:0\d loss 0\.628, KL 0\.710, 1,216 tok/s"
    assert any(re.fullmatch(wanted, line.strip()) for line in lines), lines


def test_progress_is_silent_in_tests(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("rollout", 2) as advance:
        advance(2)
    assert capsys.readouterr().err == ""


def test_making_a_world_again_with_other_numbers_is_a_sentence(tmp_path: Path) -> None:
    demo.make_tiny_world(tmp_path / "w", seed=1, train_videos=1, eval_videos=1)
    with pytest.raises(VideoOPDError, match="remove the folder"):
        demo.make_tiny_world(tmp_path / "w", seed=2, train_videos=1, eval_videos=1)
