"""Names, keys, the round's page and the event: pure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flows.prefect_page.artifacts import key, stage_table
from flows.prefect_page.events import Committed
from flows.prefect_page.gpu_limit import cards_of
from flows.prefect_page.round_page import RoundPage, markdown
from flows.summaries import RoundSummary, StageSummary
from opd_core.config.load import Config, load_config
from opd_core.types import StageUse
from tests.flows.prefect_page.conftest import cells
from tests.tiny_config import as_toml

BEFORE = {
    "strict_miou": 0.5, "strict_r1_30": 0.6, "strict_r1_50": 0.4, "strict_r1_70": None,
    "parse_failures": 0.0,
}  # fmt: skip
AFTER = RoundSummary(3, 1200, 0.61, 0.7, 0.5, 0.3, 0.01, notes=("left out: 2 | one kind",))
USE = StageUse("score", 63.0, 6300, 100.0, 2_500_000_000, "cuda")
PAGE = RoundPage(Path("/runs/my run"), BEFORE, AFTER, [("selected", 512)], [USE])


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ("tiny", "videoopd-tiny-round"),
        ("Qwen3_VL 8B (2)", "videoopd-qwen3-vl-8b-2-round"),
        ("größe", "videoopd-gr-e-round"),
        ("---", "videoopd-round"),
    ],
)
def test_a_key_has_the_letters_that_prefect_takes(run: str, expected: str) -> None:
    from prefect.client.schemas.actions import ArtifactCreate

    assert key(run, "round") == expected
    assert ArtifactCreate(key=key(run, "round")).key == expected, "Prefect validates it"


def test_the_page_of_a_round() -> None:
    said = markdown(PAGE)
    assert "## my run, round 3" in said
    assert "| mIoU | 0.500 | 0.610 | +0.110 |" in said
    assert "| `R1@0.7` | - | 0.300 | - |" in said, "absent is no number"
    assert "| selected | 512 |" in said
    assert "| score | 63.0 | 100 | 2.5 (cuda) |" in said
    assert "videoopd status '/runs/my run'\n" in said
    assert "videoopd view '/runs/my run'@3" in said
    assert "- left out: 2 | one kind" in said
    assert "policy_version = 2 GROUP BY" in said, "the round samples from policy 2"


def test_a_stage_is_a_table_in_which_absent_is_null() -> None:
    done = StageSummary("score", 2, 40, 8, 61.239, {"quarantined": 3}, 10, 0.25, USE)
    assert cells(stage_table(3, done)) == {
        "round": 3,
        "rows written": 40,
        "rows copied, of them": 10,
        "quarantined": 3,
        "seconds": 61.2,
        "tokens a second": 100,
        "largest engine mismatch, nats": 0.25,
        "memory of cuda, MB": 2500,
    }
    row = cells(stage_table(3, StageSummary("draw", 2, 40, 8, 1.0)))
    absent = {name for name, cell in row.items() if cell is None}
    assert absent == {"tokens a second", "largest engine mismatch, nats", "memory, MB"}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(0.5, 0.6, "rose"), (0.6, 0.5, "fell"), (0.5, 0.5, "same"), (None, 0.5, "unknown")],
)
def test_what_became_of_miou(before: float | None, after: float | None, expected: str) -> None:
    done = Committed("id", Path("/r"), Path("/c"), (), 1, 0, "hash", before, after, None, None, 4)
    assert done.miou == expected


@pytest.fixture
def config(tmp_path: Path) -> Config:
    needed = {
        "run.path": "run", "data.train": "t", "data.eval": "e", "data.videos": "v",
        "student.path": "s", "teacher.path": "t",
    }  # fmt: skip
    (tmp_path / "c.toml").write_text(as_toml(needed))
    return load_config(tmp_path / "c.toml")


def with_(config: Config, *overrides: str) -> Config:
    return load_config(config.run.path.with_name("c.toml"), overrides)


def test_how_many_cards_a_stage_takes(config: Config) -> None:
    def cards(stage: str, *overrides: str) -> int:
        return cards_of(with_(config, *overrides), stage, lambda device: device == "cpu")

    on_cards = {"validate", "rollout", "score", "update", "evaluate"}
    for stage in ("draw", "validate", "rollout", "score", "focus", "update", "evaluate"):
        assert cards(stage, "machine.device=cuda") == (stage in on_cards)
        assert cards(stage, "machine.device=cpu") == 0
    two = ("vllm.tensor_parallel_size=2", "rollout.engine=vllm", "machine.device=cuda:0")
    assert [cards(s, *two) for s in ("rollout", "score", "update")] == [2, 1, 1]
    wide = ("cluster.workers=3", "cluster.devices_per_worker=2")
    assert cards("score", *wide, "machine.device=auto") == 6
    server = ("teacher.engine=vllm_server", "vllm_server.address=http://h:1", "vllm_server.model=m")
    assert [cards(s, *server) for s in ("score", "evaluate")] == [0, 1], "its cards are elsewhere"


def test_on_a_machine_without_a_card_auto_takes_none(config: Config) -> None:
    from opd_core.plan.present import present_card

    if present_card("auto") is not None:
        pytest.skip("this machine has a card")
    assert cards_of(config, "update") == 0
    assert cards_of(with_(config, "machine.device=cuda"), "update") == 1, "asked for by name"


def test_a_page_of_nothing_to_compare() -> None:
    first = replace(PAGE, after=replace(AFTER, miou=None), reasons=[], uses=[])
    assert "| mIoU | 0.500 | - | - |" in markdown(first)
