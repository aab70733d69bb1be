"""A study's TOML: what runs it makes, and one sentence for every mistake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flows.study.plan import Plan, StudyRun, load_study
from opd_core.types import VideoOPDError

CONFIGS = Path(__file__).parents[3] / "configs"
STUDY = f"""
base = "{CONFIGS / "study_base.toml"}"
rounds = 2
seeds = [0, 1, 2]
tune_seeds = [100]
learning_rates = [1e-4, 1e-3]
[world]
train_videos = 10
tune_videos = 4
eval_videos = 5
[settings]
"rollout.examples_per_round" = 8
[arms.base]
title = "the student"
rounds = 0
[arms.opd]
title = "Video-OPD"
settings = {{ "rollout.rollouts_per_example" = 8 }}
[arms.long]
title = "longer"
rounds = 5
[quick]
seeds = [7]
[quick.world]
eval_videos = 2
[quick.arms.opd.settings]
"rollout.rollouts_per_example" = 2
"""


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Plan]:
    def load(text: str = STUDY, quick: bool = False) -> Plan:
        file = tmp_path / "mine.toml"
        file.write_text(text)
        (plan,) = load_study(file, tmp_path / "studies", quick=quick)
        return plan

    return load


def test_every_trained_arm_is_tuned_with_every_learning_rate(load: Callable[..., Plan]) -> None:
    runs = load().tuning_runs()
    assert [(r.arm, r.learning_rate, r.rounds) for r in runs] == [
        ("opd", 1e-4, 2), ("opd", 1e-3, 2), ("long", 1e-4, 5), ("long", 1e-3, 5),
    ]  # fmt: skip
    assert all(r.seed == 100 and r.tuning for r in runs)


def test_an_arm_that_is_not_there_is_named_with_its_fix(load: Callable[..., Plan]) -> None:
    load().check_arm("opd")
    with pytest.raises(VideoOPDError, match="no arm 'odp'; did you mean 'opd'"):
        load().check_arm("odp")


def test_tuning_may_be_shorter(load: Callable[..., Plan]) -> None:
    short = load(STUDY.replace("tune_seeds = [100]", "tune_seeds = [100]\ntune_rounds = 3"))
    assert [r.rounds for r in short.tuning_runs()] == [2, 2, 3, 3]


def test_one_learning_rate_needs_no_tuning(load: Callable[..., Plan]) -> None:
    plan = load(STUDY.replace("[1e-4, 1e-3]", "[1e-4]"))
    assert plan.tuning_runs() == []
    assert plan.only_rate() == {"opd": 1e-4, "long": 1e-4}
    assert plan.seeds() == [0, 1, 2]


def test_each_tune_seed_has_its_runs_and_its_world(load: Callable[..., Plan]) -> None:
    plan = load(STUDY.replace("tune_seeds = [100]", "tune_seeds = [100, 101]"))
    opd = [(r.learning_rate, r.seed) for r in plan.tuning_runs() if r.arm == "opd"]
    assert opd == [(rate, seed) for rate in (1e-4, 1e-3) for seed in (100, 101)]
    assert plan.seeds() == [100, 101, 0, 1, 2]


CONDITIONS = """
[conditions.clean]
[conditions.loose]
seeds = [5]
only_arms = ["base", "opd"]
[conditions.loose.settings]
"rollout.examples_per_round" = 4
[quick]
"""


def test_each_condition_is_a_study_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(STUDY.replace("[quick]\n", CONDITIONS, 1))
    clean, loose = load_study(file, tmp_path / "studies")
    assert [p.name for p in (clean, loose)] == ["mine-clean", "mine-loose"]
    assert clean.root != loose.root
    assert clean.world(0) == loose.world(0), "worlds that are the same are made once"
    assert (list(clean.study.arms), list(loose.study.arms)) == (
        ["base", "opd", "long"], ["base", "opd"],
    )  # fmt: skip
    assert (clean.study.seeds, loose.study.seeds) == ((0, 1, 2), (5,))
    run = StudyRun("opd", 1e-3, 5, 2, tuning=False)
    assert [p.config(run).rollout.examples_per_round for p in (clean, loose)] == [8, 4]
    assert loose.config(run).rollout.rollouts_per_example == 8, "the arm's own settings stay"
    quick = load_study(file, tmp_path / "studies", quick=True)
    assert [p.name for p in quick] == ["mine-clean-quick", "mine-loose-quick"]
    assert [p.study.seeds for p in quick] == [(7,), (7,)]


@pytest.mark.parametrize(("text", "sentence"), [
    ("[conditions]", r"\[conditions\] names none; add \[conditions\.NAME\], or leave it out"),
    ('[conditions."a/b"]', "'a/b' is to name a folder .*without '/'"),
    ('[conditions.".."]', "'..' is to name a folder"),
    ('[arms."a/b"]\ntitle = "x"', "'a/b' is to name a folder"),
    ('[arms.worlds]\ntitle = "x"', "'worlds' is to name a folder"),
    ('[claims]\nname = "x"', r"\[claims\] is one table; write \[\[claims\]\] over each claim"),
])  # fmt: skip
def test_what_fails_only_after_the_runs_is_refused_before(
    text: str, sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(STUDY.replace("[quick]", f"{text}\n[quick]", 1))
    with pytest.raises(VideoOPDError, match=sentence) as refusal:
        load_study(file, tmp_path / "studies")
    assert str(file) in str(refusal.value) and "\n" not in str(refusal.value)


def test_conditions_may_be_annotated_otherwise_and_share_the_frames(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    loose = CONDITIONS.replace('only_arms = ["base", "opd"]', 'world.annotations = "loose"')
    file.write_text(STUDY.replace("[quick]\n", loose, 1))
    plans = load_study(file, tmp_path / "studies")
    worlds = tmp_path / "studies" / "mine" / "worlds"
    assert [p.world(5).relative_to(worlds).as_posix() for p in plans] == [
        "short-clean/seed-5", "short-loose/seed-5",
    ]  # fmt: skip
    run = StudyRun("opd", 1e-3, 5, 2, tuning=False)
    assert {p.config(run).frames.path for p in plans} == {tmp_path / "studies" / "mine" / "frames"}
    quick, _ = load_study(file, tmp_path / "studies", quick=True)
    assert quick.shared == tmp_path / "studies" / "mine-quick", "whose worlds are smaller"


def test_an_arm_takes_the_rate_of_another(load: Callable[..., Plan]) -> None:
    plan = load(STUDY.replace("rounds = 5", 'rounds = 5\nrate_of = "opd"'))
    assert {r.arm for r in plan.tuning_runs()} == {"opd"}
    assert plan.study.rate_from("long") == "opd" and plan.study.rate_from("opd") == "opd"
    assert plan.study.trained() == ["opd", "long"]


def test_an_arm_may_have_seeds_of_its_own(load: Callable[..., Plan]) -> None:
    plan = load(STUDY.replace("rounds = 5", "rounds = 5\nseeds = [2, 9]"))
    runs = plan.runs({"opd": 1e-3, "long": 1e-4})
    assert [r.seed for r in runs if r.arm == "long"] == [2, 9]
    assert [r.seed for r in runs if r.arm == "opd"] == [0, 1, 2]
    assert plan.seeds() == [100, 0, 1, 2, 9], "each has its world"


def test_a_table_of_settings_becomes_a_table(load: Callable[..., Plan]) -> None:
    settings = '{ "update.objective" = { exact_reverse_kl = 1.0, grpo = 0.5 } }'
    plan = load(STUDY.replace("rounds = 5", f"settings = {settings}"))
    config = plan.config(StudyRun("long", 1e-3, 5, 2, tuning=False))
    assert config.update.objective == {"exact_reverse_kl": 1.0, "grpo": 0.5}


def test_every_arm_runs_on_every_seed_with_its_own_learning_rate(
    load: Callable[..., Plan],
) -> None:
    runs = load().runs({"opd": 1e-3})  # all tuning runs of `long` failed
    assert [(r.arm, r.learning_rate, r.seed) for r in runs] == [
        (arm, rate, seed) for seed in (0, 1, 2) for arm, rate in (("base", None), ("opd", 1e-3))
    ], "whole seeds, one after the other"
    assert [runs[0].folder, runs[1].folder] == ["base/seed-0", "opd/lr-0.001/seed-0"]
    assert len({r.folder for r in (*runs, *load().tuning_runs())}) == 10


def test_runs_differ_from_the_base_in_what_the_study_says_only(
    load: Callable[..., Plan], tmp_path: Path
) -> None:
    plan = load()
    config = plan.config(StudyRun("opd", 1e-3, 2, 2, tuning=False))
    assert config.rollout.examples_per_round == 8 and config.rollout.rollouts_per_example == 8
    assert config.update.learning_rate == 1e-3 and config.run.seed == 2
    root = tmp_path / "studies" / "mine"
    assert config.run.path == root / "opd" / "lr-0.001" / "seed-2"
    assert config.frames.path == root / "frames"
    assert config.data.eval == root / "worlds" / "short-clean" / "seed-2" / "eval.jsonl"


def test_tuning_is_evaluated_on_the_tune_split_of_a_world_of_its_own(
    load: Callable[..., Plan],
) -> None:
    plan = load()
    tuning = plan.config(plan.tuning_runs()[0]).data
    assert tuning.eval.name == "tune.jsonl" and tuning.eval.parent.name == "seed-100"
    for run in plan.runs({"opd": 1e-3}):
        data = plan.config(run).data
        assert data.eval.name == "eval.jsonl" and data.train.name == "train-without-tune.jsonl"
        assert data.eval.parent != tuning.eval.parent


def test_quick_changes_what_it_names_and_nothing_else(load: Callable[..., Plan]) -> None:
    plan, whole = load(quick=True), load()
    assert plan.name == "mine-quick" and plan.root != whole.root
    assert plan.study.seeds == (7,)
    assert plan.study.world.eval_videos == 2 and plan.study.world.train_videos == 10
    assert plan.study.arms["opd"].title == "Video-OPD"
    assert plan.study.arms["opd"].settings == {"rollout.rollouts_per_example": 2}
    assert plan.study.rounds == whole.study.rounds


MISTAKES = [
    ("rounds = 2", "round = 2", "unknown key 'round'; did you mean 'rounds'?"),
    ("tune_videos", "tuned_videos", "unknown key 'world.tuned_videos'; did you mean 'tune_videos'"),
    ('title = "Video-OPD"', 'titel = "x"', "unknown key 'arms.opd.titel'; did you mean 'title'?"),
    ("rounds = 5", "round = 5", "unknown key 'arms.long.round'; did you mean 'rounds'?"),
    ("tune_seeds = [100]", "tune_seeds = [1]", "tune_seeds has 1, one of the seeds"),
    ("[world]", 'only_arms = ["odp"]\n[world]', "only_arms names 'odp', .* did you mean 'opd'"),
    ("[quick]", "[conditions]\nloose = 1\n[quick]", "conditions.loose = 1 is no table; write"),
    ("rollouts_per_example", "rollout_per_example", "arm 'opd': .*did you mean 'rollouts_per_ex"),
    ("rounds = 5", "seeds = [100]", "tune_seeds has 100, one of the seeds"),
    ("rounds = 5", 'rate_of = "odp"', "arms.long.rate_of = 'odp' is no arm .* did you mean 'opd'"),
    ("rounds = 5", 'rate_of = "base"', "rate_of = 'base' is an arm without a learning rate"),
    ("[world]", '[world]\nannotations = "lose"', "'lose' is not known; known are: clean, loose"),
    ("[world]", '[world]\nscene = "shrt"', "'shrt' is not known; known are: short, long"),
    ("seeds = [0, 1, 2]", "seeds = []", "seeds = .* is not valid"),
    ("[world]", "in_picture = false\n[world]", "in_picture = false leaves the picture empty; set"),
    ("[quick]", "[fast]", "unknown key 'fast'"),
    ("[world]", "[world", "cannot be read as TOML"),
]


@pytest.mark.parametrize(("right", "wrong", "message"), MISTAKES)
def test_a_mistake_is_named_with_its_fix(
    load: Callable[..., Plan], right: str, wrong: str, message: str
) -> None:
    with pytest.raises(VideoOPDError, match=message) as caught:
        load(STUDY.replace(right, wrong, 1))
    assert "\n" not in str(caught.value)


def test_quick_must_be_there(load: Callable[..., Plan]) -> None:
    with pytest.raises(VideoOPDError, match=r"has no \[quick\]; add it"):
        load(STUDY[: STUDY.index("[quick]")], quick=True)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(VideoOPDError, match="there is no study at .*nowhere.toml"):
        load_study(tmp_path / "nowhere.toml", tmp_path)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("file", sorted((CONFIGS / "studies").glob("*.toml")), ids=lambda p: p.stem)
def test_the_projects_studies_load(tmp_path: Path, file: Path, quick: bool) -> None:
    for plan in load_study(file, tmp_path, quick=quick):
        runs = [*plan.tuning_runs(), *plan.runs(dict.fromkeys(plan.study.trained(), 1e-4))]
        first = plan.config(runs[-1])
        for run in runs:
            config = plan.config(run)
            # Equal data, equal optimiser: what may not differ between arms.
            for setting in ("epochs", "examples_per_step", "cooldown", "freeze_vision"):
                assert getattr(config.update, setting) == getattr(first.update, setting)
            # No round needs an example twice.
            sentences = {"short": 2.9, "long": 4.4}[plan.study.world.scene]
            drawn = run.rounds * config.rollout.examples_per_round
            assert drawn < sentences * plan.study.world.train_videos


def test_the_claims_are_judged_at_equal_steps(tmp_path: Path) -> None:
    """As many items for every arm: all that are drawn, or as many of more."""
    for quick in (False, True):
        for plan in load_study(CONFIGS / "studies" / "claims.toml", tmp_path, quick=quick):
            items = plan.study.settings["rollout.examples_per_round"]
            for arm in plan.study.arms:
                config = plan.config(StudyRun(arm, 1e-4, 0, 5, tuning=False))
                taken = {
                    "uniform": config.rollout.examples_per_round,
                    "tvdf": config.focus.top_k,
                    "scc": config.focus.frontier + config.focus.anchors,
                }
                assert taken[config.focus.curriculum] == items
