"""Costs of stages: measured where asked for, whole lines only, nothing lost to a kill."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from flows.stage import costs as stage_costs
from flows.stage.costs import StageCost, measured, read_costs, recording
from flows.summaries import StageSummary
from opd_core.engines import idle_time
from opd_core.model import token_count
from opd_core.types import Policy
from tests.known import known

POLICY = Policy(3, Path("policy"), "hash")
SUMMARY = StageSummary("busy", 3, 0, 0, 0.0)


def spin(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@measured
def busy(work: object, policy: Policy) -> StageSummary:
    spin(0.2)
    token_count.passed(7)
    idle_time.passed(working=3.0, idle=0.5)
    return SUMMARY


@measured
def idle(work: object, policy: Policy) -> StageSummary:
    time.sleep(0.2)
    return SUMMARY


@measured
def failing(work: object, policy: Policy) -> StageSummary:
    raise ValueError("no")


def test_cpu_wall_and_tokens_of_each_stage_and_of_what_lies_between(tmp_path: Path) -> None:
    with recording(tmp_path / "costs.jsonl"):
        assert busy(None, POLICY) == SUMMARY
        spin(0.1)
        idle(None, POLICY)
    first, between, second = read_costs(tmp_path / "costs.jsonl")
    assert [c.stage for c in (first, between, second)] == ["busy", "between", "idle"]
    assert first.policy_version == 3 and first.tokens == 7 and second.tokens == 0
    assert (first.engine_seconds, first.engine_idle_seconds) == (3.0, 0.5)
    assert second.engine_seconds is second.engine_idle_seconds is None, "it had no engine"
    assert 0.2 <= first.cpu_seconds < 0.4
    assert 0.1 <= between.cpu_seconds < 0.3
    assert second.cpu_seconds < 0.15 and second.seconds >= 0.2
    assert len({c.attempt for c in (first, between, second)}) == 1
    assert not first.killed and [p.name for p in tmp_path.iterdir()] == ["costs.jsonl"]


def test_without_a_recording_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert busy(None, POLICY) == SUMMARY
    assert list(tmp_path.iterdir()) == []


def test_children_count_alive_or_ended(tmp_path: Path) -> None:
    program = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    children: list[subprocess.Popen[bytes]] = []

    @measured
    def ended(work: object, policy: Policy) -> StageSummary:
        subprocess.run([sys.executable, "-c", program], check=True)
        return SUMMARY

    @measured
    def alive(work: object, policy: Policy) -> StageSummary:
        child = subprocess.Popen(
            [sys.executable, "-c", program + "\nprint(flush=True)\ninput()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        known(child.stdout).readline()
        children.append(child)
        return SUMMARY

    with recording(tmp_path / "costs.jsonl"):
        ended(None, POLICY)
        alive(None, POLICY)
        children[0].communicate(b"\n")
        idle(None, POLICY)  # its time as a child that has ended is not counted again
    costs = {c.stage: c.cpu_seconds for c in read_costs(tmp_path / "costs.jsonl")}
    assert costs["ended"] >= 0.3 and costs["alive"] >= 0.3
    assert costs["idle"] < 0.2


def test_a_stage_that_fails_has_cost_something_too(tmp_path: Path) -> None:
    with recording(tmp_path / "costs.jsonl"), pytest.raises(ValueError, match="no"):
        failing(None, POLICY)
    assert [c.stage for c in read_costs(tmp_path / "costs.jsonl")] == ["failing"]


def test_what_a_killed_stage_had_spent_is_kept(tmp_path: Path) -> None:
    program = """
import sys, time, types
from pathlib import Path
from flows.stage import costs as stage_costs
stage_costs.TICK_SECONDS = 0.05

@stage_costs.measured
def update(work, policy):
    end = time.process_time() + 0.3
    while time.process_time() < end: pass
    print(flush=True)
    time.sleep(60)

with stage_costs.recording(Path(sys.argv[1])):
    update(None, types.SimpleNamespace(version=2))
"""
    file = tmp_path / "costs.jsonl"
    command = [sys.executable, "-c", program, str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    known(process.stdout).readline()
    time.sleep(1.0)
    process.kill()
    process.communicate()
    assert read_costs(file) == []
    with recording(file):
        idle(None, POLICY)
    killed, after = read_costs(file)
    assert killed.stage == "update" and killed.policy_version == 2 and killed.killed
    assert killed.cpu_seconds >= 0.3 and not after.killed
    assert killed.attempt != after.attempt


def test_costs_of_older_programs_are_read(tmp_path: Path) -> None:
    line = asdict(StageCost(2, "update", 1.0, 1.0, 5, "an attempt"))
    for name in ("engine_seconds", "engine_idle_seconds"):
        del line[name]
    (tmp_path / "costs.jsonl").write_text(json.dumps(line) + "\n")
    (cost,) = read_costs(tmp_path / "costs.jsonl")
    assert cost.engine_seconds is None


def test_a_stage_killed_after_its_line_is_not_counted_twice(tmp_path: Path) -> None:
    file = tmp_path / "costs.jsonl"
    line = StageCost(2, "update", 1.0, 1.0, 5, "an attempt")
    file.write_text(json.dumps(asdict(line)) + "\n" + '{"policy_version": 2, "sta')
    (tmp_path / ".costs.jsonl.open").write_text(json.dumps(asdict(line) | {"killed": True}))
    with recording(file):
        idle(None, POLICY)
    assert [c.stage for c in read_costs(file)] == ["update", "idle"]
    assert not list(tmp_path.glob(".*"))


def test_recordings_end(tmp_path: Path) -> None:
    with recording(tmp_path / "costs.jsonl"):
        pass
    assert stage_costs._recorder is None
