"""`[policies]`: which older weights stay, what is said of the others, and a kill in between."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows import stages
from flows.audit.walk import Depth, audit
from flows.cli import main
from flows.stage.older_policies import best_policy
from flows.stage.prepare import opened
from opd_core.tinyworld.world import World
from opd_core.types import VideoOPDError
from storage.runs.marks import record
from storage.runs.run import Run
from tests.flows.conftest import KILLED, Launch
from tests.flows.kill_points import run_without_server
from tests.known import known
from tests.tiny_config import as_toml, tiny_settings

WEIGHTS = "checkpoints hold the weights that were committed"
SHORT = {"rollout.examples_per_round": 4, "focus.top_k": 2, "evaluate.max_examples": 8}
KEEP = {"policies.keep": ["tagged", "best"], "policies.every": 3}
LORA = {"update.lora.rank": 4, "update.learning_rate": 1e-2}
Told = Callable[..., str]


def config(folder: Path, world: Any, **changes: Any) -> str:
    path = folder / "run.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_toml(tiny_settings(folder / "run", world) | SHORT | changes))
    return str(path)


@pytest.fixture(scope="module", params=["full", "lora"])
def five_rounds(
    request: pytest.FixtureRequest, tiny_world: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Of a run whose policy 1 is tagged and that keeps little from its third round on."""
    folder = tmp_path_factory.mktemp(request.param)
    kind = LORA if request.param == "lora" else {}
    run_without_server(config(folder, tiny_world, **kind), 2)
    assert main(["tag", f"{folder / 'run'}@1", "paper"]) == 0
    run_without_server(config(folder, tiny_world, **kind, **KEEP), 3)
    return folder / "run"


@pytest.fixture(scope="module")
def two_rounds(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that has kept everything so far."""
    folder = tmp_path_factory.mktemp("two")
    run_without_server(config(folder, tiny_world), 2)
    return folder / "run"


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """What a command prints; where it is refused, its sentence."""

    def run(*words: object, code: int = 0) -> str:
        capsys.readouterr()
        assert main([str(word) for word in words]) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    return run


def gone(run: Path) -> list[int]:
    return [c.version for c in Run.open(run).checkpoints() if c.let_go]


def expected_gone(run: Path) -> list[int]:
    """By the stored evaluations, in other words than the program's."""
    rows = Run.open(run).present_evaluations().filter(pl.col("policy_version") > 0)
    means = rows.group_by("policy_version").agg(pl.col("iou").mean()).sort("policy_version")
    best = means.collect().sort("iou", maintain_order=True)["policy_version"][-1]
    return [v for v in (1, 2, 3, 4, 5) if v not in {1, 3, 5, best}]


@pytest.mark.in_turn(always=["full"])
def test_tagged_best_every_third_and_the_newest_stay(five_rounds: Path) -> None:
    assert gone(five_rounds) == expected_gone(five_rounds) != []
    run = Run.open(five_rounds)
    hashes = dict(run.updates().select("policy_version", "policy_hash").collect().iter_rows())
    for version in (1, 2, 3, 4, 5):
        folder = five_rounds / "policies" / f"v{version}"
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["weights_hash"] == hashes[version], "manifest and hash stay in any case"
        if version in gone(five_rounds):
            assert [p.name for p in folder.iterdir()] == ["manifest.json"]
        else:
            assert run.policy(version).weights_hash == hashes[version]
    assert run.policy(0).path.is_dir()


@pytest.mark.in_turn
def test_the_audit_names_what_was_let_go(five_rounds: Path, told: Told) -> None:
    verdicts = {v.link: v for v in audit(Run.open(five_rounds), Depth(deep=1.0, seed=0))}
    assert [v.broken for v in verdicts.values() if v.broken] == []
    missing = gone(five_rounds)
    weights, sampled = (known(verdicts[name].checked) for name in (WEIGHTS, "sampled again"))
    assert weights.count == 1 + 5 - len(missing)
    because = "let go on 20"
    for version, line in zip(missing, weights.let_go, strict=True):
        assert line.startswith(f"the weights of policy {version} were {because}")
        assert line.endswith('(policies.keep = ["tagged", "best"], policies.every = 3)')
    rounds = [version + 1 for version in missing]
    assert [line.split(":")[0] for line in sampled.let_go] == [f"round {r}" for r in rounds]
    printed = told("audit", five_rounds, "--videos", 0)
    assert f"  ? the weights of policy {missing[0]} were {because}" in printed
    assert f"links hold; {len(missing)} parts (?) were let go and are not proven" in printed
    content = json.loads(told("audit", five_rounds, "--videos", 0, "--format", "json"))
    link = next(item for item in content["links"] if item["link"] == WEIGHTS)
    assert content["whole"] and len(link["checked"]["let_go"]) == len(missing)


@pytest.mark.in_turn(always=["full"])
def test_the_audit_refutes_weights_that_are_missing_without_a_record(
    five_rounds: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(five_rounds, tmp_path / "run"))
    for file in (run / "policies" / "v3").glob("*.safetensors"):
        file.unlink()
    broken = {v.link: v.broken for v in audit(Run.open(run), Depth(videos=0.0)) if v.broken}
    assert str(run / "policies" / "v3") in broken[WEIGHTS]


@pytest.mark.in_turn(always=["full"])
def test_the_audit_refutes_a_hash_that_was_changed_after_the_weights_went(
    five_rounds: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(five_rounds, tmp_path / "run"))
    file = run / "policies" / f"v{gone(run)[0]}" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"weights_hash": "x"}))
    broken = {v.link: v.broken for v in audit(Run.open(run), Depth(videos=0.0)) if v.broken}
    assert broken[WEIGHTS].startswith(f"{file}: weights_hash is 'x'")


@pytest.mark.in_turn
def test_what_needs_the_weights_says_what_became_of_them(
    five_rounds: Path, tmp_path: Path, told: Told
) -> None:
    version, file = gone(five_rounds)[0], five_rounds.with_name("run.toml")
    there = [v for v in range(6) if v not in gone(five_rounds)]
    sentence = f"policy {version} of run {five_rounds} has no weights any more, they were let go on"
    fix = f"take a policy that is still there ({', '.join(map(str, there))})"
    for words in (
        ("export", f"{five_rounds}@{version}", "--to", "hub-folder", "--out", tmp_path / "out"),
        ("stage", "score", file, "--round", version + 1, "--force"),
        ("stage", "rollout", file, "--round", version + 1, "--force"),
        ("stage", "evaluate", file, "--round", version, "--force"),
        ("evaluate", file, "--policy", version, "--set", "evaluate.max_examples=9"),
        ("tag", f"{five_rounds}@{version}", "late"),
    ):
        refusal = told(*words, code=2)
        assert sentence in refusal and "take a policy that is still there (0, 1" in refusal, words
        assert fix in refusal or words[0] == "export", "which is as of that round"
        assert refusal.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.in_turn(always=["full"])
def test_stored_answers_need_no_weights(five_rounds: Path, told: Told) -> None:
    version, file = gone(five_rounds)[0], five_rounds.with_name("run.toml")
    assert f"policy {version}" in told("evaluate", f"{five_rounds}@{version}")
    assert f"policy {version}" in told("evaluate", file, "--policy", version)
    assert "evaluate of round" in told("stage", "evaluate", file, "--round", version)
    rollout = Run.open(five_rounds).rollouts().filter(pl.col("policy_version") == version)
    shown = told("show", five_rounds, rollout.collect()["rollout_id"][0])
    assert "event happens" in shown.replace("\n", " ") or "seconds" in shown


@pytest.mark.in_turn(always=["full"])
def test_status_says_which_are_tagged_and_which_are_gone(five_rounds: Path, told: Told) -> None:
    content = json.loads(told("status", five_rounds, "--json"))
    by_version = {p["policy_version"]: p for p in content["policies"]}
    assert by_version[1]["tags"] == ["paper"] and by_version[1]["let_go"] is None
    assert [v for v, p in by_version.items() if p["let_go"]] == gone(five_rounds)
    printed = told("status", five_rounds)
    assert "paper" in printed
    assert f"policy {gone(five_rounds)[0]}: its weights were let go on 20" in printed


@pytest.mark.in_turn(always=["full"])
def test_names_are_given_once_and_taken_off(five_rounds: Path, told: Told, tmp_path: Path) -> None:
    run = Path(shutil.copytree(five_rounds, tmp_path / "run"))
    assert "policy 1 in" in told("tag", f"{run}@3", "paper", code=2)
    assert "is not tagged best; it is tagged paper" in told(
        "tag", f"{run}@1", "best", "--remove", code=2
    )
    assert "is no name" in told("tag", f"{run}@1", "two words", code=2)
    assert "always stays" in told("tag", f"{run}@0", "base", code=2)
    assert "is a word of policies.keep" in told("tag", f"{run}@1", "best", code=2)
    assert "has no policy 9" in told("tag", f"{run}@9", "x", code=2)
    told("tag", f"{run}@1", "paper", "--remove")
    assert told("tag", run, "paper") == f"policy 5 of {run} is tagged paper\n"
    tags = {c.version: c.tags for c in Run.open(run).checkpoints()}
    assert tags == {1: (), 2: (), 3: (), 4: (), 5: ("paper",)}


@pytest.mark.in_turn(always=["full"])
def test_one_may_tag_while_a_round_runs(five_rounds: Path, tmp_path: Path, told: Told) -> None:
    run = Path(shutil.copytree(five_rounds, tmp_path / "run"))
    with Run.open(run).exclusive("round"):
        assert "is tagged now" in told("tag", f"{run}@3", "now")


@pytest.mark.in_turn
def test_a_rerun_keeps_what_it_needs_and_lets_the_superseded_go(
    tiny_world: Any, two_rounds: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(two_rounds, tmp_path / "run"))
    run_without_server(config(tmp_path, tiny_world), 1)
    assert main(["tag", f"{run}@3", "old"]) == 0
    few = config(tmp_path, tiny_world, **{"policies.keep": ["tagged"]})
    with opened(few) as work:
        stages.score.fn(work, work.policy_at("score", 2), force=True)
    assert [s.stage for s in Run.open(run).takes().stale()] == ["focus", "update"]
    with opened(few) as work:
        for stage in (stages.focus, stages.update):
            stage.fn(work, work.policy_at(stage.__name__, 2))
    assert gone(run) == [], "the round of the new policy 2 is not finished"
    run_without_server(few)
    found = {c.folder.name: c for c in Run.open(run).checkpoints()}
    assert sorted(found) == ["v1", "v2", "v2.take1", "v3"]
    assert found["v3"].tags == ("old",) and found["v3"].let_go is None, "a name keeps it"
    because = 'policies.keep = ["tagged"]'
    assert known(found["v1"].let_go).because == because
    assert known(found["v2"].let_go).because == f"{because}, a rerun has superseded it"
    assert found["v2.take1"].let_go is None
    with pytest.raises(VideoOPDError, match="policy 1 of run .* has no weights any more"):
        Run.open(run).policy(1)


@pytest.mark.kill
@pytest.mark.parametrize("point", ["after record", "before remove", "after remove"])
@pytest.mark.in_turn(always=["after record"])
def test_killed_while_letting_go_it_is_made_good_by_the_next_round(
    tiny_world: Any, two_rounds: Path, tmp_path: Path, launch: Launch, point: str
) -> None:
    run = Path(shutil.copytree(two_rounds, tmp_path / "run"))
    few = config(tmp_path, tiny_world, **{"policies.keep": []})
    assert launch(Path(few), point) == KILLED
    recorded = [1] if point == "after record" else [1, 2]
    assert gone(run) == recorded, "the record comes first"
    v1 = run / "policies" / "v1"
    assert (v1 / "model.safetensors").exists() == (point != "after remove")
    if point == "before remove":
        (v1 / "model.safetensors").unlink()  # as killed in the middle of it
    assert [v.broken for v in audit(Run.open(run), Depth(videos=0.0)) if v.broken] == []
    with pytest.raises(VideoOPDError, match="no weights any more"):
        Run.open(run).policy(1)
    run_without_server(few)
    assert gone(run) == [1, 2, 3]
    for version in (1, 2, 3):
        left = [p.name for p in (run / "policies" / f"v{version}").iterdir()]
        assert left == ["manifest.json"]
    assert [v.broken for v in audit(Run.open(run), Depth(videos=0.0)) if v.broken] == []


@pytest.mark.in_turn(always=["full"])
def test_what_was_recorded_goes_even_where_the_config_keeps_all_now(
    five_rounds: Path, tmp_path: Path, tiny_world: Any
) -> None:
    run = Path(shutil.copytree(five_rounds, tmp_path / "run"))
    left = run / "policies" / f"v{gone(run)[0]}" / "model.safetensors"
    left.write_bytes(b"what a kill left")
    everything = config(tmp_path, tiny_world, **(LORA if "lora" in str(five_rounds) else {}))
    run_without_server(everything)
    assert not left.exists()
    assert gone(run) == gone(five_rounds), "and no more of them"


@pytest.mark.in_turn(always=["full"])
def test_the_best_is_of_what_a_round_has_made(five_rounds: Path) -> None:
    best = best_policy(Run.open(five_rounds))
    assert best is not None and best > 0 and best not in gone(five_rounds)


@pytest.mark.in_turn(always=["full"])
def test_the_best_has_its_weights(five_rounds: Path, tmp_path: Path) -> None:
    """Where the eval split has changed, one that was let go may have answered it better."""
    run = Path(shutil.copytree(five_rounds, tmp_path / "run"))
    before = best_policy(Run.open(run))
    record(run / "policies" / f"v{before}", "by hand")
    after = best_policy(Run.open(run))
    assert after not in {None, before, *gone(run)}


def test_keeping_changes_no_hash_and_every_alone_is_refused(
    tiny_world: Any, tmp_path: Path
) -> None:
    from opd_core.config.load import load_config

    plain = load_config(config(tmp_path, tiny_world))
    assert load_config(config(tmp_path, tiny_world, **KEEP)).hash == plain.hash
    for wrong in ("best", ["bst"]):
        with pytest.raises(VideoOPDError, match="policies.keep = .* or to a list of 'tagged'"):
            load_config(config(tmp_path, tiny_world, **{"policies.keep": wrong}))
    with pytest.raises(VideoOPDError, match="policies.every = 3 says nothing beside"):
        load_config(config(tmp_path, tiny_world, **{"policies.every": 3}))
