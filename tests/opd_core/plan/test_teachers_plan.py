"""What several teachers take, and one that is elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from opd_core.config.load import Config, load_config
from opd_core.plan.cards import card
from opd_core.plan.plan import Machine, Plan
from opd_core.plan.plan_of_config import plan_of
from tests.tiny_config import ROOT

LARGE = {"name": "large", "path": str(ROOT / "configs/tiny/teacher"), "dtype": "float32"}
SMALL = {"name": "small", "path": str(ROOT / "configs/tiny/loose-student"), "dtype": "float32"}


def several(tmp_path: Path, *teachers: Mapping[str, object], sources: str = "aab") -> Config:
    lines = [
        {"source": source, "video_path": f"{n}.mp4", "duration": 10.0,
         "events": [{"query": "a dog", "span": [[1.0, 2.0]]}]}
        for n, source in enumerate(sources)
    ]  # fmt: skip
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = load_config(ROOT / "configs" / "tiny.toml", [f"data.train={train}"])
    content = config.model_dump() | {"teachers": [dict(teacher) for teacher in teachers]}
    del content["teacher"]
    return Config.model_validate(content)


def planned(config: Config) -> Plan:
    return plan_of(config, Machine(card("H100"), None))


def stage(plan: Plan, name: str) -> tuple[float, float]:
    (found,) = (s for s in plan.stages if s.stage == name)
    assert found.work is not None
    return found.memory.on_device, found.work.flops


@pytest.mark.parametrize("name", ["validate", "score"])
def test_a_stage_needs_the_largest_and_works_by_their_shares(tmp_path: Path, name: str) -> None:
    both = several(tmp_path, LARGE | {"takes": {"source": "a"}}, SMALL)
    memory, flops = stage(planned(both), name)
    large, small = (stage(planned(several(tmp_path, one)), name) for one in (LARGE, SMALL))
    assert large[0] > small[0] and memory == large[0]
    assert flops == pytest.approx((2 * large[1] + small[1]) / 3)


def test_what_would_fit_names_the_teacher(tmp_path: Path) -> None:
    published = {"name": "b", "path": "Qwen/Qwen3-VL-32B-Instruct", "dtype": "float32"}
    config = several(tmp_path, SMALL | {"takes": {"source": "a"}}, published)
    (score,) = (s for s in planned(config).stages if s.stage == "score")
    assert not score.fits
    assert score.remedy is not None and score.remedy["teachers.b.dtype"] == "bfloat16"


def test_a_teacher_elsewhere_takes_nothing_here(tmp_path: Path) -> None:
    folder = tmp_path / "processor"
    shutil.copytree(LARGE["path"], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    away = {"name": "away", "path": str(folder), "engine": "vllm_server", "dtype": "float32"}
    assert stage(planned(several(tmp_path, away)), "score")[0] == 0.0
    here = away | {"path": LARGE["path"]}
    assert stage(planned(several(tmp_path, here)), "score")[0] > 0.0
