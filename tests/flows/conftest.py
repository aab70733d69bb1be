"""What the tests of the flow share: small models, a config of a round of seconds, the real command.

The models are untrained, drawn from a seed. They load, sample, score and train as any checkpoint
does, and nothing here depends on how good the shipped weights are. Their answers hold no span, so
every IoU is 0, and so is the bound on the teacher's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opd_core.tinyworld.world import World
from tests import forked

ROOT = Path(__file__).resolve().parents[2]
ROLES = ("student", "teacher")

WriteConfig = Callable[..., Path]
Command = Callable[..., subprocess.CompletedProcess[str]]
Launch = Callable[..., int]
KILL_SCRIPT = Path(__file__).with_name("kill_points.py")
KILLED = -9
MODULES = ("flows.round", "flows.console.plan_tables")
"""Of a round, Prefect's among them: for processes that speak to no server."""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`student` and `teacher`: folders of untrained checkpoints of one vocabulary."""
    from opd_core import torchvision_guard

    torchvision_guard.install()
    from opd_core.tinyworld.models import build_model, build_processor, save_model

    folder = tmp_path_factory.mktemp("models")
    processor = build_processor()
    for seed, role in enumerate(ROLES):
        save_model(build_model(role, processor.tokenizer, seed), processor, folder / role)  # type: ignore[arg-type]
    return {role: folder / role for role in ROLES}


@pytest.fixture(scope="session")
def write_config(tiny_world: World, models: dict[str, Path]) -> WriteConfig:
    """`write_config(folder, {"focus.top_k": 4})` is the path of a config with its run beside it."""

    def write(folder: Path, overrides: dict[str, Any] | None = None) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "run.path": "run",
            "data.train": tiny_world.train,
            "data.eval": tiny_world.eval,
            "data.videos": tiny_world.videos,
            "student.path": models["student"],
            "student.dtype": "float32",
            "teacher.path": models["teacher"],
            "teacher.dtype": "float32",
            "teacher.predictions": 2,
            "video.max_frames": 24,
            "rollout.examples_per_round": 10,
            "rollout.rollouts_per_example": 2,
            "rollout.max_new_tokens": 8,
            "rollout.prompts_per_batch": 4,
            "focus.min_teacher_iou": 0.0,
            "focus.top_k": 8,
            "score.teacher_topk": 16,
            "update.learning_rate": 1e-4,
            "update.examples_per_step": 3,
            "update.warmup_steps": 4,
            "update.cooldown": 0.75,
            "evaluate.max_examples": 5,
            "evaluate.max_new_tokens": 8,
            "evaluate.prompts_per_batch": 3,
            "machine.device": "cpu",
            "machine.threads": 1,
        } | (overrides or {})
        path = folder / "config.toml"
        path.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in settings.items()))
        return path

    return write


def _toml(value: Any) -> str:
    if isinstance(value, str | Path):
        return f"'{value}'"
    return str(value).lower() if isinstance(value, bool) else repr(value)


@pytest.fixture(scope="session")
def command_environment(prefect_home: Callable[[], Path]) -> dict[str, str]:
    """For a process of its own: a Prefect home of its own, and no server named."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return kept | {"PREFECT_HOME": str(prefect_home()), "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def command(command_environment: dict[str, str]) -> Command:
    """`command("run", config)` runs `videoopd run config` in a process of its own, which starts
    the Prefect server that it needs unless it is given the address of one."""

    def run(
        *arguments: object, server: str | None = None, timeout: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        given = {} if server is None else {"PREFECT_API_URL": server}
        return forked.run(
            [sys.executable, "-m", "flows.cli", *arguments],
            env=command_environment | given,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def launch() -> Launch:
    """`launch(config, "before save", 1)`: exit code of a process that runs one round; with
    `seconds` it is killed when it has lasted so long."""

    def run(
        config: Path, point: str | None = None, n: int = 1, seconds: float | None = None
    ) -> int:
        killed = [] if point is None else [point, n]
        with config.with_name("log.txt").open("a") as log:
            process = forked.Popen(
                [sys.executable, KILL_SCRIPT, *killed, config],
                stdout=log, stderr=log, modules=MODULES,
            )  # fmt: skip
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    return run
