"""An engine whose process is really killed: once, always, and errors that are no crash."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from opd_core.child_process import Child, ChildCrash
from opd_core.engines.crash import is_crash, told
from opd_core.types import EngineCrashError, VideoOPDError
from storage.runs.run import Run
from tests import forked
from tests.foreign_package import install

if TYPE_CHECKING:
    pass

Fragile = Callable[..., tuple[list[str], list[str], Run]]
"""What drawing and sampling with that engine said, what it did, and the run it made."""
ROOT = Path(__file__).resolve().parents[3]
SOURCE = '''
"""The hf engine, beside which a process has to live. It is killed in the second batch, so often."""
import os, signal
from contextlib import contextmanager
from pathlib import Path

from opd_core.child_process import Child, ChildCrash
from opd_core.config.section import Section
from opd_core.engines.crash import told
from opd_core.engines.hf.record import ENGINE as HF
from opd_core.extensions import Engine


class FragileSection(Section):
    crashes: int = 0
    log: Path
    how: str = "killed"


@contextmanager
def opened(config, folder, dtype, encoder, longest):
    from opd_core.engines.hf.sampling import HFEngine

    settings = config.of("fragile")

    class Fragile(HFEngine):
        name = "fragile"
        batches = 0

        def sample(self, videos, params):
            self.batches += 1
            crashed = settings.log.read_text().count("crash") if settings.log.exists() else 0
            if self.batches == 2 and crashed < settings.crashes:
                self._end()
            answers = super().sample(videos, params)
            with settings.log.open("a") as log:
                log.write("".join(f"answered {key}\\n" for key in answers))
            return answers

        def _end(self):
            with settings.log.open("a") as log:
                log.write("crash\\n")
            if settings.how == "no memory":
                import torch
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            if settings.how == "refused":
                from opd_core.types import VideoOPDError
                raise VideoOPDError("fragile.how is wrong; correct it")
            child = Child("opd_core.engines.hf.sharded")
            os.kill(child.pid, signal.SIGKILL)
            try:
                child.receive()
            except ChildCrash as crash:
                raise told(crash, f"the fragile process {crash}; rerun the stage") from None

    with HF.opened(config, folder, dtype, encoder, longest) as engine:
        yield Fragile(engine.model, encoder.prompts.tokenizer)


ENGINE = Engine(about="it may die", opened=opened, settings=FragileSection)
'''
POINTS = {"videoopd.engines": {"fragile": "fragile_engine:ENGINE"}}
RUN_STAGES = """
import sys
from prefect.client.orchestration import get_client
from flows.deployments import DEPLOYMENTS
from opd_core.types import VideoOPDError
config, *stages = sys.argv[1:]
for stage in stages:
    try:
        DEPLOYMENTS[stage](config, force=stage == "rollout" and "--force" in stages)
    except Exception as error:
        print(type(error).__name__, str(error).splitlines()[0])
with get_client(sync_client=True) as client:
    for run in client.read_task_runs():
        if run.name.startswith("rollout"):
            print("attempts", run.run_count, run.state_name)
"""


@pytest.fixture
def fragile(write_config: Callable[..., Path], tmp_path: Path, prefect_api: str) -> Fragile:
    """What drawing and sampling with that engine said, what it did, and the run it made."""
    theirs = install(tmp_path / "site", "fragile_engine", SOURCE, POINTS)

    def run(**settings: object) -> tuple[list[str], list[str], Run]:
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        overrides = {"rollout.engine": "fragile", "fragile.log": log, "score.teacher_topk": 0}
        named = {f"fragile.{name}": value for name, value in settings.items()}
        folder = tmp_path / "-".join(map(str, settings.values())).replace(" ", "-")
        config = write_config(folder, overrides | named)
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, (ROOT, theirs))),
            "PREFECT_API_URL": prefect_api,
            "PREFECT_LOGGING_LEVEL": "CRITICAL",
        }
        done = forked.run(
            [sys.executable, "-c", RUN_STAGES, config, "draw", "rollout"],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        said = [*done.stdout.splitlines(), *done.stderr.splitlines()]
        return said, log.read_text().splitlines(), Run.open(folder / "run")

    return run


@pytest.mark.server
@pytest.mark.parametrize("how", ["killed", "no memory"])
def test_after_a_crash_the_stage_goes_on(fragile: Fragile, how: str) -> None:
    said, did, run = fragile(crashes=1, how=how)
    lines = [line for line in said if "trying once more" in line]
    assert len(lines) == 1 and lines[0].startswith("rollout-round-1: ")
    assert ("died of SIGKILL" if how == "killed" else "CUDA out of memory") in lines[0]
    assert did.count("crash") == 1
    answered = [line for line in did if line != "crash"]
    assert len(set(answered)) == len(answered), "no batch was computed twice"
    rows = run.rollouts().collect()
    assert len(rows) == rows["rollout_id"].n_unique() == 20
    assert run.quarantine().collect().is_empty()


@pytest.mark.server
def test_what_always_crashes_is_tried_twice(fragile: Fragile) -> None:
    said, did, run = fragile(crashes=9, how="killed")
    assert did.count("crash") == 2
    assert [line for line in said if "Error" in line] == [
        "EngineCrashError the fragile process died of SIGKILL; rerun the stage"
    ]
    assert 0 < len(run.rollouts().collect()) < 20, "what was computed is kept"


@pytest.mark.server
def test_a_refusal_is_not_tried_again(fragile: Fragile) -> None:
    said, did, _ = fragile(crashes=9, how="refused")
    assert did.count("crash") == 1
    assert "VideoOPDError fragile.how is wrong; correct it" in said
    assert not [line for line in said if "once more" in line]


def test_a_forced_stage_goes_on_with_the_take_that_crashed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Forced once more, it would throw away what it had computed before the crash."""
    from types import SimpleNamespace

    from flows import stages
    from flows.prefect_page import retries
    from flows.stage import task

    forced: list[bool] = []
    work: Any = SimpleNamespace(config=None, run=SimpleNamespace(path=Path("run")))
    monkeypatch.setattr(task, "replace", lambda work, begins: work)
    monkeypatch.setattr(task, "stage_artifact", lambda *_: None)
    monkeypatch.setattr(stages.rollout, "fn", lambda work, policy, force: forced.append(force))
    policy: Any = SimpleNamespace(version=0)
    for again in (False, True):
        monkeypatch.setattr(retries, "is_another_attempt", lambda again=again: again)
        stages.rollout._in_prefect(work, policy, True)
    assert forced == [True, False]


def test_which_errors_are_crashes() -> None:
    torch = importlib.import_module("torch")
    assert is_crash(EngineCrashError("gone"))
    assert is_crash(torch.OutOfMemoryError("CUDA out of memory"))
    others = VideoOPDError("refused"), MemoryError(), RuntimeError("CUDA error"), OSError(), None
    assert not any(map(is_crash, others))


@pytest.mark.parametrize(
    ("code", "crashed"),
    [
        (f"os.kill(os.getpid(), {int(signal.SIGKILL)})", True),
        ("os.abort()", True),
        ("raise RuntimeError('torch.OutOfMemoryError: CUDA out of memory')", True),
        ("raise ValueError('a wrong setting')", False),
        ("sys.exit(3)", False),
    ],
)
def test_how_a_process_ended_says_whether_it_may_end_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, crashed: bool
) -> None:
    (tmp_path / "ends_so.py").write_text(f"import os, sys\n{code}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ChildCrash) as crash:
        Child("ends_so").receive()
    error = told(crash.value, "it has ended")
    assert isinstance(error, EngineCrashError) is crashed and str(error) == "it has ended"
