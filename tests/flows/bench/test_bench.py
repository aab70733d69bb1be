"""The benches run; what they measure is for `make bench`."""

import json
from pathlib import Path

import pytest

from flows.bench import engine_idle
from flows.bench.claims_cost import ANSWER, PROMPTS, Judge, Trainer, claims_cost_rows
from flows.bench.interleaved import at_least, at_most, medians
from flows.bench.tiny_config import BASE, DEMO, Shipped, world_config
from flows.demo import config_file
from opd_core.config.load import load_config
from opd_core.model import token_count
from opd_core.tinyworld.world import World
from tests.tiny_config import as_toml, tiny_settings


def test_alternatives_take_turns_after_one_unmeasured_turn() -> None:
    calls = []
    seconds = medians({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert "".join(calls) == "abababab"
    assert seconds.keys() == {"a", "b"}


def test_a_promise_is_met_or_not() -> None:
    assert at_least("x", 2.0, 2.0).met and not at_least("x", 1.9, 2.0).met
    assert at_most("x", 2.0, 2.0).met and not at_most("x", 2.1, 2.0).met


@pytest.mark.parametrize("like", [BASE, DEMO], ids=lambda shipped: shipped.name)
def test_a_config_of_a_bench_has_all_its_own(tmp_path: Path, like: Shipped) -> None:
    config = load_config(world_config(tmp_path, 3, 2, 1, like))
    assert config.run.seed == 3 and config.run.path == tmp_path / "run"
    for file in (config.data.train, config.data.eval, config.data.videos):
        assert file.exists() and file.is_relative_to(tmp_path / "world")
    assert (config.student.path / "config.json").is_file()
    assert (config.teacher.path / "config.json").is_file()
    made = json.loads((tmp_path / "world" / "world.json").read_text())
    assert ("annotators" in made) == (like.annotations == "loose")


def test_a_bench_of_the_demo_runs_its_config(tmp_path: Path) -> None:
    places = {"run", "data"}
    bench = load_config(world_config(tmp_path, 0, 2, 1, DEMO)).model_dump(exclude=places)
    assert bench == load_config(config_file()).model_dump(exclude=places)


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return Trainer()


@pytest.mark.parametrize("judge", ["teacher", "rewards"])
def test_a_step_is_the_same_with_prompts_repeated_and_shared(
    trainer: Trainer, judge: Judge
) -> None:
    prompts = trainer.prompts(80, 2)
    tree, apart = (trainer.step(prompts, 3, judge, shared) for shared in (True, False))
    assert tree.answers == apart.answers and len(tree.answers) == 6
    assert {len(token_ids) for token_ids in tree.answers.values()} == {ANSWER}
    assert apart.loss == pytest.approx(tree.loss, rel=1e-4, abs=1e-6)
    # GRPO's loss is 0 before its first step, whatever the answers; its gradient is not.
    assert tree.grad_norm > 1e-3 and (judge == "rewards" or abs(tree.loss) > 1e-3)
    assert apart.grad_norm == pytest.approx(tree.grad_norm, rel=1e-4)


def test_what_repeats_the_prompt_runs_it_again(trainer: Trainer) -> None:
    prompts = trainer.prompts(80, 1)
    tokens = []
    for shared in (True, False):
        before = token_count.total()
        trainer.step(prompts, 4, "teacher", shared)
        tokens.append(token_count.total() - before)
    answered = 4 * (ANSWER - 1) + 2 * 4 * ANSWER  # decoded, scored, trained
    assert tokens == [3 * 80 + answered, 3 * 4 * 80 + answered]


def test_the_prompts_are_as_long_as_asked_and_the_teacher_four_times_as_large(
    trainer: Trainer,
) -> None:
    for tokens in PROMPTS:
        (prompt,) = trainer.prompts(tokens, 1)
        assert len(prompt.token_ids) == tokens
    assert trainer.times_the_student == pytest.approx(4.0, abs=0.1)


def test_the_cost_of_a_step_is_told_for_each_length_and_way() -> None:
    rows = list(claims_cost_rows({80: 2, 100: 1}, repetitions=1))
    assert [row.name for row in rows] == [
        f"a step at {tokens} prompt tokens, {way}: OPD-1 / GRPO-8"
        for tokens in (80, 100)
        for way in ("separate sequences", "prefix trees")
    ]
    for row in rows:
        opd, grpo = row.details["seconds a prompt"].values()
        assert row.value == pytest.approx(opd / grpo)
        for name, seconds in row.details["seconds a prompt"].items():
            assert sum(row.details["of which"][name].values()) == pytest.approx(seconds, rel=0.2)


def test_an_engine_that_is_fed_meanwhile_is_measured_beside_one_that_waits(
    tiny_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_idle, "BATCHES", 2)
    monkeypatch.setattr(engine_idle, "PROMPTS", 3)
    config = tmp_path / "tiny.toml"
    config.write_text(as_toml(tiny_settings(tmp_path / "run", tiny_world)))
    (row,) = engine_idle.engine_idle_rows(str(config), 1, engines=["hf"])
    after, meanwhile = (
        row.details[way] for way in ("prepared after the last batch", "prepared meanwhile")
    )
    assert 0 < meanwhile["idle_share"] < 1 and 0 < after["idle_share"] < 1
    assert row.value == 100 * meanwhile["idle_share"]
