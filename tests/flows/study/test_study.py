"""A real study, killed and continued: two arms, one seed, one round, with untrained models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows import cli
from flows.stage.costs import read_costs
from flows.study.plan import load_study
from flows.study.rows import read_result
from storage.runs.run import Run
from tests import forked
from tests.flows.conftest import WriteConfig
from tests.stages_before import stages_before

pytestmark = pytest.mark.timeout(600)  # processes start one after the other, on a busy machine too
ROOT = Path(__file__).resolve().parents[3]
STUDY = """
base = "{base}"
rounds = 1
seeds = [3]
tune_seeds = [100]
learning_rates = [1e-4]
[world]
train_videos = 4
tune_videos = 1
eval_videos = 2
[settings]
"rollout.examples_per_round" = 6
[arms.base]
title = "the student"
rounds = 0
[arms.tvdf]
title = "TVDF"
settings = {{ "focus.top_k" = {top_k} }}
[arms.uniform]
title = "all examples"
settings = {{ "focus.curriculum" = "uniform" }}
[[claims]]
name = "TVDF helps"
statement = "it ends above all examples"
arms = ["tvdf"]
against = ["uniform"]
"""


class Study:
    """A study's file, where its runs and its report go, and its command."""

    def __init__(self, folder: Path, base: Path, environment: dict[str, str]) -> None:
        self.file = folder / "mine.toml"
        self.runs, self.out = folder / "runs", folder / "out"
        self._base, self._environment = base, environment
        self.write()

    def write(self, top_k: int = 4) -> None:
        self.file.write_text(STUDY.format(base=self._base, top_k=top_k))

    @property
    def arguments(self) -> list[str]:
        return ["study", str(self.file), "--runs", str(self.runs), "--out", str(self.out)]

    def start(self) -> subprocess.Popen[str]:
        return forked.Popen(
            [sys.executable, "-m", "flows.cli", *self.arguments, "--jobs", "1"],
            env=self._environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        out, err = process.communicate(timeout=240)
        return process.returncode, out, err

    def costs(self, arm: str) -> Path:
        return self.runs / "mine" / arm / "lr-0.0001" / "seed-3" / "costs.jsonl"


def _is_worker(process: psutil.Process) -> bool:
    return "spawn_main" in " ".join(process.cmdline())


@pytest.fixture(scope="module")
def study(
    tmp_path_factory: pytest.TempPathFactory, write_config: Any, prefect_api: str,
    command_environment: dict[str, str],
) -> Study:  # fmt: skip
    folder = tmp_path_factory.mktemp("study")
    base = write_config(folder / "base")
    return Study(folder, base, command_environment | {"PREFECT_API_URL": prefect_api})


@pytest.fixture(scope="module")
def killed_and_continued(study: Study) -> dict[str, Any]:
    """Killed while the first trained arm is in its round; then the same command to its end."""
    process = study.start()
    workers: list[psutil.Process] = []
    while "rollout" not in {c.stage for c in read_costs(study.costs("tvdf"))}:
        assert process.poll() is None, process.communicate()
        workers = [p for p in psutil.Process(process.pid).children() if _is_worker(p)] or workers
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=20)
    attempts = {c.attempt for c in read_costs(study.costs("tvdf"))}
    code, out, err = study.finish(study.start())
    return {
        "workers": len(workers), "alive": alive, "attempts": attempts, "code": code,
        "out": out, "err": err,
    }  # fmt: skip


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.in_turn
def test_a_killed_study_goes_on_where_it_was(
    study: Study, killed_and_continued: dict[str, Any]
) -> None:
    found = killed_and_continued
    assert found["workers"] == 1 and not found["alive"], "a worker outlived its study"
    assert found["code"] == 0, found["err"]
    assert len(found["attempts"]) == 1
    assert {c.attempt for c in read_costs(study.costs("tvdf"))} > found["attempts"]
    assert "base/seed-3: eval mIoU" not in found["out"], "a complete run was run again"
    for arm in ("tvdf", "uniform"):
        assert f"{arm}/lr-0.0001/seed-3: eval mIoU" in found["out"]
        run = Run.open(study.costs(arm).parent)
        assert run.finished_rounds() == [1]
        assert run.rollouts().collect().height == 12  # 6 examples, none sampled twice


@pytest.mark.server
@pytest.mark.slow
def test_the_cost_of_a_resumed_round_is_the_sum_and_is_marked(
    study: Study, killed_and_continued: dict[str, Any]
) -> None:
    (plan,) = load_study(study.file, study.runs)
    base, tvdf, uniform = (read_result(plan, r) for r in plan.runs({"tvdf": 1e-4, "uniform": 1e-4}))
    assert [len(r.points) for r in (base, tvdf, uniform)] == [1, 2, 2]
    assert tvdf.last.resumed and not uniform.last.resumed
    lines = [
        c for c in read_costs(study.costs("uniform")) if c.stage not in ("between", "evaluate")
    ]
    assert [c.stage for c in lines] == list(stages_before("evaluate"))
    by_stage = {c.stage: c for c in lines}
    assert uniform.last.cpu_seconds > sum(c.cpu_seconds for c in lines) > 0
    assert by_stage["validate"].tokens == 0  # the uniform curriculum asks no teacher
    for stage in ("rollout", "score", "update"):
        assert by_stage[stage].tokens > 0 and by_stage[stage].cpu_seconds > 0
    # Both drew the same examples, and the evaluation is in no cost.
    assert tvdf.last.examples == uniform.last.examples
    assert uniform.last.tokens == sum(c.tokens for c in lines)
    steps = Run.open(study.costs("uniform").parent).updates().collect()["steps"].list.len().item()
    assert uniform.last.steps == steps


@pytest.mark.server
@pytest.mark.slow
def test_a_complete_study_runs_nothing_and_reports_again(
    study: Study, killed_and_continued: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    files = [study.out / f"mine.{kind}" for kind in ("md", "svg", "json")]
    before = [f.read_bytes() for f in files]
    for file in files:
        file.unlink()
    before_costs = study.costs("uniform").read_bytes()
    assert cli.main([*study.arguments, "--report"]) == 0
    assert [f.read_bytes() for f in files] == before
    assert cli.main(study.arguments) == 0
    assert study.costs("uniform").read_bytes() == before_costs
    numbers = json.loads(files[2].read_text())
    assert [(r["arm"], len(r["points"])) for r in numbers["runs"]] == [
        ("base", 1), ("tvdf", 2), ("uniform", 2),
    ]  # fmt: skip
    assert len(numbers["sessions"]) == 2, "a report is no session"


@pytest.mark.server
@pytest.mark.slow
def test_a_condition_without_runs_is_named_beside_the_report_of_the_others(
    study: Study, killed_and_continued: dict[str, Any], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    both = tmp_path / "mine.toml"
    both.write_text(study.file.read_text() + "[conditions.now]\n[conditions.later]\n")
    (study.runs / "mine-now").symlink_to(study.runs / "mine")
    arguments = ["study", str(both), "--report", "--runs", str(study.runs), "--out", str(tmp_path)]
    assert cli.main(arguments) == 1
    assert "missing: mine-later: it has no complete run" in capsys.readouterr().err
    assert {file.suffix for file in tmp_path.glob("mine-now.*")} == {".json", ".md", ".svg"}
    assert not list(tmp_path.glob("mine-later.*")) and not (tmp_path / "mine.svg").exists()


@pytest.mark.server
@pytest.mark.slow
def test_other_settings_are_refused(
    study: Study, killed_and_continued: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    study.write(top_k=2)
    try:
        assert cli.main(study.arguments) == 2
    finally:
        study.write()
    message = capsys.readouterr().err
    assert (
        "tvdf/lr-0.0001/seed-3 was run with other settings (focus.top_k was 4, is 2 now)" in message
    )
    assert "remove the folder" in message and message.count("\n") == 1


@pytest.mark.server
@pytest.mark.slow
def test_a_key_that_has_come_since_was_at_its_default(
    study: Study, killed_and_continued: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = (study.costs("tvdf").parent / "configs").glob("*.json")
    content = json.loads(file.read_text())
    assert content["update"].pop("entropy_weight") is False
    older = file.with_name("0123456789abcdef.json")
    for line, code in ((content, 0), (content | {"gone": {}}, 2)):
        older.write_text(json.dumps(line))
        assert cli.main([*study.arguments, "--report"]) == code
    older.unlink()
    assert "not known to this version" in capsys.readouterr().err


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.in_turn
def test_a_run_that_fails_is_named_and_the_others_go_on(
    study: Study, killed_and_continued: dict[str, Any], tmp_path: Path, write_config: WriteConfig
) -> None:
    text = STUDY.format(base=study._base, top_k=4).replace("seeds = [3]", "seeds = [4]")
    # A teacher of random weights reaches no IoU above zero: focus then has nothing.
    text = text.replace('"focus.top_k" = 4', '"focus.min_teacher_iou" = 0.9')
    other = Study(tmp_path, study._base, study._environment)
    other.file.write_text(text)
    code, out, err = other.finish(other.start())
    assert code == 1
    assert "tvdf/lr-0.0001/seed-4: failed: none of the 6 examples drawn" in err
    assert "uniform/lr-0.0001/seed-4: eval mIoU" in out
    report = (other.out / "mine.md").read_text()
    assert "## Missing" in report and "- `tvdf/lr-0.0001/seed-4`: none of the 6" in report
    assert "| `uniform` |" in report and "| `tvdf` |" not in report


def test_a_report_without_runs_says_what_to_do(
    tmp_path: Path, write_config: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Study(tmp_path, write_config(tmp_path / "base"), dict(os.environ))
    assert cli.main([*study.arguments, "--report"]) == 2
    assert "has no complete run to report; run `videoopd study" in capsys.readouterr().err
