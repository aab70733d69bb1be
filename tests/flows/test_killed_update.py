"""A killed update goes on at its last saved step, and ends as if nobody had killed it, bit for bit.

Real processes get a real SIGKILL at random steps. The round up to its update is made once; each
case trains a copy of it.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flows import stages
from flows.cli import main
from flows.numbers.steps import steps
from flows.stage.prepare import opened
from opd_core.config.load import load_config
from opd_core.types import GroundingExample, Policy, Rollout, TeacherScore, VideoOPDError
from opd_core.update.rows import Outline
from opd_core.update.saved_step import update_key
from storage.asking.contents import contents
from storage.runs.run import Run
from storage.runs.saved_steps import SavedSteps
from tests.flows.conftest import KILLED, Launch, WriteConfig
from tests.stages_before import stages_before

pytestmark = pytest.mark.kill
Undisturbed = Callable[..., Path]

STEPS = 8
ROUND = {
    "update.objective": "exact_reverse_kl",
    "update.examples_per_step": 1,
    "update.epochs": STEPS,  # of one step each, where all is of one video
    "update.max_steps": STEPS,
    "update.max_policy_kl": 1e3,
    "update.save_minutes": 0,
    "focus.top_k": 3,
    "rollout.examples_per_round": 5,
    "rollout.rollouts_per_example": 2,
    "evaluate.max_examples": 2,
}
CASES: dict[str, dict[str, Any]] = {
    "float32": {},
    "vision": {"update.freeze_vision": False, "update.gradient_checkpointing": True},
    "old log-probs": {"update.objective": "policy_gradient", "update.tis": "token"},
    "lora": {"update.lora.rank": 4, "update.lora.dropout": 0.3, "update.learning_rate": 1e-2},
    "8-bit": {"update.optimizer": "adamw_8bit"},
    "bfloat16": {"student.dtype": "bfloat16"},
    "bfloat16 8-bit": {"student.dtype": "bfloat16", "update.weights": "bfloat16",
                       "update.optimizer": "adamw_8bit"},
    "lora 8-bit": {"student.dtype": "bfloat16", "update.lora.rank": 4, "update.lora.dropout": 0.3,
                   "update.learning_rate": 1e-2, "update.optimizer": "adamw_8bit",
                   "update.weights": "bfloat16"},
    "offload": {"student.dtype": "bfloat16", "update.offload": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def before_update(write_config: WriteConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose first round lacks its update and what follows."""
    folder = tmp_path_factory.mktemp("before-update")
    with opened(str(write_config(folder, ROUND))) as work:
        for name in ("evaluate", *stages_before("update")):
            getattr(stages, name).fn(work, work.policy())
    return folder / "run"


@pytest.fixture(scope="module")
def undisturbed(
    launch: Launch,
    write_config: WriteConfig,
    before_update: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Undisturbed:
    """`undisturbed(lora)`: the config of such an update that nobody killed, made once."""
    made: dict[str, Path] = {}

    def run(**changes: Any) -> Path:
        if (key := str(changes)) not in made:
            folder = tmp_path_factory.mktemp("undisturbed")
            config = copied(write_config, folder, before_update, **changes)
            assert launch(config) == 0, said(config)
            made[key] = config
        return made[key]

    return run


def copied(write_config: WriteConfig, folder: Path, before: Path, **changes: Any) -> Path:
    shutil.copytree(before, folder / "run")
    return write_config(folder, ROUND | changes)


def saved_steps(config: Path) -> list[str]:
    return sorted(p.name for p in config.with_name("run").glob("trainer/steps/*"))


def steps_seen(config: Path, running: bool) -> list[int]:
    """What whoever looks on sees of the update."""
    frame = steps(Run.open(config.with_name("run")))
    assert set(frame["running"]) <= {running}
    return frame["step"].to_list()


def said(config: Path) -> str:
    return config.with_name("log.txt").read_text()


def trainer_state(config: Path) -> Any:
    file = config.with_name("run") / "trainer" / "v1" / "optimizer.pt"
    return torch.load(file, weights_only=True)


def assert_same(a: Any, b: Any) -> None:
    """Of states of optimisers, bit for bit."""
    assert type(a) is type(b)
    if hasattr(a, "codes"):  # torchao's moments
        assert a.codes.equal(b.codes) and a.scale.equal(b.scale)
    elif isinstance(a, torch.Tensor):
        assert a.equal(b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def assert_as_undisturbed(config: Path, undisturbed: Path) -> None:
    ours, theirs = (contents(Run.open(c.with_name("run"))) for c in (config, undisturbed))
    assert [step["step"] for step in ours["updates"][0]["steps"]] == list(range(STEPS))
    for name in theirs:
        assert ours[name] == theirs[name], name
    assert_same(trainer_state(config), trainer_state(undisturbed))
    assert saved_steps(config) == [], "it goes away when the policy is committed"
    assert steps_seen(config, running=False) == list(range(STEPS))
    assert not Run.open(config.with_name("run")).running_steps().path.exists()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.in_turn(always=["float32"])
def test_killed_at_random_steps_it_ends_as_one_that_nobody_killed(
    launch: Launch, write_config: WriteConfig, before_update: Path, undisturbed: Undisturbed,
    tmp_path: Path, case: str,
) -> None:  # fmt: skip
    config = copied(write_config, tmp_path / "killed", before_update, **CASES[case])
    moments = random.Random(case)
    done = 0
    for _ in range(2):
        calls = moments.randint(1, (STEPS - done) // 2)
        point = moments.choice(("before", "after"))
        assert launch(config, f"{point} step", calls) == KILLED, said(config)
        done += calls - 1  # the step that was hit was not saved, made or not
        assert saved_steps(config) == ([f"step-{done}"] if done else [])
        assert steps_seen(config, running=True) == list(range(done))
    assert launch(config) == 0, said(config)
    went_on = f"update: goes on at step {done} of {STEPS}"
    assert (went_on in said(config)) == (done > 0)
    assert_as_undisturbed(config, undisturbed(**CASES[case]))


@pytest.mark.parametrize("point", ["before save", "after save", "after publish", "before saved",
                                   "after saved", "after append:updates"])  # fmt: skip
@pytest.mark.in_turn(always=["after saved"])
def test_killed_beside_a_step_it_ends_as_one_that_nobody_killed(
    launch: Launch, write_config: WriteConfig, before_update: Path, undisturbed: Undisturbed,
    tmp_path: Path, point: str,
) -> None:  # fmt: skip
    config = copied(write_config, tmp_path / "killed", before_update)
    assert launch(config, point, 3 if point.endswith("saved") else 1) == KILLED, said(config)
    step = {"before saved": 2, "after saved": 3}.get(point, STEPS - 1)
    assert f"step-{step}" in saved_steps(config)
    committed = point == "after append:updates"
    told = {"before saved": 3, "after saved": 3}.get(point, STEPS)
    assert steps_seen(config, running=not committed) == list(range(told))
    assert launch(config) == 0, said(config)
    assert (f"goes on at step {step} of {STEPS}" in said(config)) != committed
    assert_as_undisturbed(config, undisturbed())


@pytest.fixture
def killed(launch: Launch, write_config: WriteConfig, before_update: Path, tmp_path: Path) -> Path:
    """The config of an update that has saved its fourth step and was killed."""
    config = copied(write_config, tmp_path / "killed", before_update)
    assert launch(config, "before step", 5) == KILLED, said(config)
    assert saved_steps(config) == ["step-4"]
    return config


@pytest.mark.in_turn
def test_a_step_of_another_update_is_never_used(
    launch: Launch, write_config: WriteConfig, undisturbed: Undisturbed, killed: Path
) -> None:
    other = {"update.learning_rate": 2e-4}
    write_config(killed.parent, ROUND | other)
    assert launch(killed) == 0, said(killed)
    assert "goes on" not in said(killed)
    assert_as_undisturbed(killed, undisturbed(**other))


def test_how_often_steps_are_saved_makes_no_other_update(
    launch: Launch, write_config: WriteConfig, killed: Path
) -> None:
    write_config(killed.parent, ROUND | {"update.save_minutes": "never"})
    assert launch(killed, "before step", 3) == KILLED
    assert saved_steps(killed) == ["step-4"]
    assert steps_seen(killed, running=True) == list(range(6)), "two since"
    assert f"goes on at step 4 of {STEPS}" in said(killed)


def test_a_forced_update_begins_at_its_first_step(
    killed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(str(killed)) as work:
        done = stages.update.fn(work, work.policy(), force=True)
    assert "goes on" not in capsys.readouterr().err and "went_on_at_step" not in done.notes
    assert saved_steps(killed) == []


def test_a_round_says_where_its_update_went_on(
    killed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(str(killed)) as work:
        done = stages.update.fn(work, work.policy())
    assert done.notes["went_on_at_step"] == 4 and done.items == STEPS
    assert capsys.readouterr().err == f"update: goes on at step 4 of {STEPS}\n"


def test_a_saved_step_that_cannot_be_read_is_told_in_a_sentence(
    killed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = killed.with_name("run") / "trainer" / "steps" / "step-4"
    for name in ("done.pt", "random.pt", "optimizer.pt", "weights.safetensors"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:100])
        with opened(str(killed)) as work, pytest.raises(VideoOPDError) as refused:
            stages.update.fn(work, work.policy())
        assert str(refused.value).startswith(f"the step saved in {folder} cannot be gone on from")
        (folder / name).write_bytes(whole)
    assert main(["audit", str(killed.with_name("run")), "--videos", "0"]) == 0


def test_steps_are_saved_as_often_as_the_config_says(
    launch: Launch, write_config: WriteConfig, before_update: Path, tmp_path: Path
) -> None:
    config = copied(write_config, tmp_path, before_update, **{"update.save_minutes": 10.0})
    assert launch(config, "before step", STEPS) == KILLED
    assert saved_steps(config) == [], "those of seconds are not worth it"


@pytest.mark.parametrize("wrong", ["sometimes", -1])
def test_a_wrong_number_of_minutes_is_told(
    write_config: WriteConfig, tmp_path: Path, wrong: Any
) -> None:
    with pytest.raises(VideoOPDError, match="update.save_minutes = .* to 0 for each step, or to"):
        load_config(write_config(tmp_path, {"update.save_minutes": wrong}))


def test_the_newest_saved_step_is_whole_whatever_a_kill_has_left(tmp_path: Path) -> None:
    store = SavedSteps(tmp_path)
    assert store.newest() is None
    store.publish(9, lambda folder: (folder / "a").touch())
    store.publish(10, lambda folder: (folder / "a").touch())
    folder = tmp_path / "trainer" / "steps"
    (folder / "step-9").mkdir()  # killed while it went
    (folder / ".step-11").mkdir()  # killed while it was written
    assert store.newest() == folder / "step-10"

    def fails(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        store.publish(11, fails)
    assert store.newest() == folder / "step-10"
    store.publish(12, lambda folder: (folder / "a").touch())
    assert [p.name for p in folder.iterdir()] == ["step-12"]
    store.clear()
    assert list((tmp_path / "trainer").iterdir()) == []
    store.clear()


def test_the_key_of_an_update_is_of_all_that_it_is_computed_from(before_update: Path) -> None:
    run = Run.open(before_update)
    config = load_config(before_update.with_name("config.toml"))
    rollouts = run.read("rollouts", Rollout)
    scores = {s.rollout_id: s for s in run.read("teacher_scores", TeacherScore)}
    pairs = [(r, scores.get(r.rollout_id)) for r in rollouts]
    examples = run.read("examples", GroundingExample)[:4]
    parent = run.policy(0)

    def key(
        lr: float = 1e-4,
        parent: Policy = parent,
        plan: Sequence[Sequence[GroundingExample]] = (examples[:2], examples[2:]),
        pairs: Sequence[tuple[Rollout, TeacherScore | None]] = tuple(pairs),
        begins: str = "begins",
    ) -> str:
        update = config.update.model_copy(update={"learning_rate": lr})
        settings = config.model_copy(update={"update": update})
        outlines = [Outline.of(rollout, score) for rollout, score in pairs]
        return update_key(settings, parent, plan, outlines, begins)

    (rollout, _), *others = pairs
    (scored, score) = next((r, s) for r, s in pairs if s is not None)
    rest = [p for p in pairs if p[0] is not scored]
    same = key()
    assert key() == same
    keys = [
        key(lr=2e-4),
        key(parent=replace(parent, weights_hash="x")),
        key(plan=(examples[:3], examples[3:])),
        key(pairs=others),
        key(pairs=[(replace(rollout, completion_token_ids=(1,)), None), *others]),
        key(pairs=[(scored, replace(score, teacher_logprobs=(0.0,))), *rest]),
        key(pairs=[(replace(scored, student_iou=0.123), score), *rest]),
        key(begins="goes on"),
    ]
    assert len({same, *keys}) == 1 + len(keys)
