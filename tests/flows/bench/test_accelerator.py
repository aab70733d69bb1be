"""`bench accelerator` in the small, on the CPU: what it says is no speed, but all of it runs."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.bench import accelerator, run
from flows.bench.accelerator import CPU_PARTS, accelerator_rows
from flows.bench.drawn import drawn_model
from flows.bench.interleaved import Row
from flows.bench.paper_round import EXAMPLES, hours_rows, matrices
from flows.bench.shapes import QWEN3_VL_8B, QWEN3_VL_32B, SMALL
from flows.bench.stage_speed import Case, Speed, flops, name_of
from opd_core.types import VideoOPDError


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return list(accelerator_rows(minutes=5, parts=list(CPU_PARTS)))


@pytest.mark.in_turn
def test_every_part_runs_to_its_end(rows: list[Row]) -> None:
    names = [row.name for row in rows]
    assert not [name for name in names if "ended" in name or "not begun" in name]
    stages = [name.split(", ", 3)[3].split(":")[0] for name in names if "video tokens" in name]
    half = "update, half of the layers checkpointed"
    assert stages == ["score", "score", "update", "update", half, "sample"]
    assert all(row.details["device"] == "CPU" for row in rows if "device" in row.details)
    assert [n for n in names if "on LoRA" in n] and [n for n in names if "8-bit" in n]
    (parity,) = [row for row in rows if "float32" in row.name]
    assert parity.value == 0 and parity.met, "of the CPU against itself"


def test_no_speed_is_judged_where_no_peak_is_known(rows: list[Row]) -> None:
    assert not [row.name for row in rows if "MFU" in row.name]
    assert {row.met for row in rows if "separate sequences" in row.name} == {None}
    assert all(row.value > 0 for row in rows if "float32" not in row.name)


def test_steps_of_the_round_move_something(rows: list[Row]) -> None:
    steps = [row for row in rows if "steps on" in row.name]
    assert [len(row.details["seconds_of_steps"]) for row in steps] == [3, 3]
    assert all(norm > 0 for row in steps for norm in row.details["grad_norms"])


@pytest.mark.in_turn
def test_a_part_that_hangs_is_ended_and_tells_where_it_stood(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The child is another process: it hangs because a module of its own name does."""
    (tmp_path / "flows_that_hang.py").write_text(
        "import time\n"
        "from flows.bench import accelerator\n"
        "from flows.bench.interleaved import Row\n"
        "def hanging():\n"
        "    yield Row('first', 1.0, 's', '', None, {})\n"
        "    time.sleep(600)\n"
        "accelerator.CPU_PARTS['hangs'] = hanging\n"
        "if __name__ == '__main__':\n"
        "    accelerator.main()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(accelerator, "CHILD", "flows_that_hang")
    began = time.monotonic()
    first, ended = accelerator_rows(minutes=1, parts=["hangs"], patience=15)
    assert time.monotonic() - began < 60
    assert first.name == "first"
    assert ended.name == "hangs: ended before it was done" and ended.met is False
    assert any("flows_that_hang.py" in line for line in ended.details["stood at"])


def test_a_part_that_has_hardly_time_to_begin_is_late_and_no_crash() -> None:
    (row,) = accelerator_rows(minutes=0.05, parts=["small"])
    assert (row.name, row.target) == ("small: ended before it was done", "no row in time")


def test_no_part_begins_when_the_minutes_are_over() -> None:
    (row,) = accelerator_rows(minutes=-1, parts=["small"])
    assert row.name == "small: not begun"


def test_minutes_are_of_the_accelerator_alone() -> None:
    with pytest.raises(VideoOPDError, match="--minutes is of `videoopd bench accelerator` alone"):
        run.main(["trees"], minutes=3)


def test_flops_are_what_the_language_model_needs() -> None:
    model = drawn_model(SMALL, torch.device("cpu"))
    tree = Case.of(SMALL, model, 64).tree
    ends = []  # of every row, counted one by one
    for row_segment, segment in enumerate(tree.segments):
        above = sum(len(tree.segments[i].token_ids) for i in tree.path(row_segment)[:-1])
        ends += [above + i + 1 for i in range(len(segment.token_ids))]
    answers = sum(len(s.token_ids) for s in tree.segments if s.key is not None)
    of_matrices = 2 * tree.tokens * matrices(SMALL) + 2 * answers * 512 * 64
    assert flops(model, tree) == of_matrices + 4 * sum(ends) * 2 * 4 * 16


def test_mfu_is_of_the_time_outside_the_vision_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.bench.stage_speed.device_name", lambda _: "NVIDIA H100 80GB HBM3")
    speed = Speed(2.0, 9.0, 0.5, None, torch.device("cpu"))
    assert speed.mfu(989e12) == pytest.approx((100 / 1.5, 50))


def test_hours_of_the_papers_round() -> None:
    details: dict[str, dict[str, Any]] = {
        "sample": {"prompts in a batch, one rollout each, seconds": 8.0, "device": "a card",
                   "rollouts of one prompt, seconds": 2.0},
        "score": {"separate_seconds": 16.0},
        "update": {"separate_seconds": 24.0},
    }  # fmt: skip
    what = {"sample": "prompts", "score": "ratio", "update": "ratio"}
    names = {stage: name_of(QWEN3_VL_8B, 8192, stage, what[stage]) for stage in details}
    known = {names[s]: Row(names[s], 1.0, "x", "", None, d) for s, d in details.items()}
    larger = matrices(QWEN3_VL_32B) / matrices(QWEN3_VL_8B)
    whole, predictions = hours_rows(known, 8192)
    assert whole.value == pytest.approx(EXAMPLES * (1 + 2 * larger + 3) / 3600)
    assert whole.details["hours_with_a_teacher_of_8B"] == pytest.approx(EXAMPLES * 6 / 3600)
    assert predictions.value == pytest.approx(EXAMPLES * 2 * larger / 3600)
    del known[names["score"]]
    assert not list(hours_rows(known, 8192))
