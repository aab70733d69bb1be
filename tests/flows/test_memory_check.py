"""What cannot fit is refused before anything is loaded, by every way to a stage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flows import cli
from flows.stage import memory_check
from flows.stage.memory_check import refuse_what_cannot_fit
from opd_core.config.load import load_config
from opd_core.plan.cards import card
from opd_core.plan.plan import Machine
from opd_core.plan.published import PUBLISHED
from opd_core.types import VideoOPDError
from tests.tiny_config import ROOT, as_toml


def write_config(folder: Path, student: str, **others: str | int) -> Path:
    """A config of folders that hold only config.json, of models of those shapes."""
    for role, name in (("student", student), ("teacher", "Qwen3-VL-2B")):
        (folder / role).mkdir(exist_ok=True)
        (folder / role / "config.json").write_text(json.dumps(PUBLISHED[name]))
    (folder / "videos").mkdir(exist_ok=True)
    values = {
        "run.path": "run",
        "data.train": "train.jsonl",
        "data.eval": "eval.jsonl",
        "data.videos": "videos",
        "student.path": "student",
        "teacher.path": "teacher",
        "machine.device": "cpu",
    }
    path = folder / "large.toml"
    path.write_text(as_toml(values | others))
    return path


def test_run_says_what_does_not_fit_and_what_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, "Qwen3-VL-32B", **{"student.dtype": "float32"})
    assert cli.main(["run", str(config)]) == 2
    said = capsys.readouterr().err
    assert "needs" in said and "GB of memory, and there are" in said
    assert "machine.check_memory = false" in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_stage_is_refused_for_itself_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(write_config(tmp_path, "Qwen3-VL-8B"))
    on_card = Machine(card("RTX 5090"), None)
    monkeypatch.setattr("opd_core.plan.plan_of_config.this_machine", lambda _: on_card)
    with pytest.raises(VideoOPDError, match="^update needs .* RTX 5090 has 32.0 GB; it fits with"):
        refuse_what_cannot_fit(config, ["update"])
    refuse_what_cannot_fit(config, ["score", "draw"])
    allowed = load_config(tmp_path / "large.toml", ["machine.check_memory=false"])
    refuse_what_cannot_fit(allowed)
    assert allowed.hash == config.hash


def test_annotated_videos_that_are_short_are_not_refused_for_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_config(tmp_path, "Qwen3-VL-2B", **{"video.max_frame_tokens": 64,
                                                    "rollout.prompts_per_batch": 16})  # fmt: skip
    on_card = Machine(card("RTX 4090"), None)
    monkeypatch.setattr("opd_core.plan.plan_of_config.this_machine", lambda _: on_card)
    with pytest.raises(VideoOPDError, match="^rollout needs"):
        refuse_what_cannot_fit(load_config(path), ["rollout"])
    line = {"source": "x", "video_path": "a.mp4", "duration": 8.0,
            "events": [{"query": "one", "span": [[0.0, 1.0]]}]}  # fmt: skip
    (tmp_path / "train.jsonl").write_text(json.dumps(line) + "\n")
    refuse_what_cannot_fit(load_config(path), ["rollout"])


@pytest.mark.parametrize(("stage", "split", "large"), [
    ("evaluate", "eval", ("evaluate.prompts_per_batch",)),
    ("rollout", "train", ("rollout.prompts_per_batch", "rollout.examples_per_round")),
])  # fmt: skip
def test_no_more_is_counted_than_is_annotated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, split: str, large: tuple[str, ...]
) -> None:
    path = write_config(tmp_path, "Qwen3-VL-2B", **dict.fromkeys(large, 100_000))
    on_card = Machine(card("H100"), None)
    monkeypatch.setattr("opd_core.plan.plan_of_config.this_machine", lambda _: on_card)
    with pytest.raises(VideoOPDError, match=f"^{stage} needs"):
        refuse_what_cannot_fit(load_config(path), [stage])
    line = {"source": "x", "video_path": "a.mp4", "duration": 8.0,
            "events": [{"query": "one", "span": [[0.0, 1.0]]}]}  # fmt: skip
    (tmp_path / f"{split}.jsonl").write_text(json.dumps(line) + "\n")
    refuse_what_cannot_fit(load_config(path), [stage])


def test_a_device_that_is_not_known_and_a_folder_without_a_model_are_left_to_others(
    tmp_path: Path,
) -> None:
    path = write_config(tmp_path, "Qwen3-VL-32B")
    refuse_what_cannot_fit(load_config(path, ["machine.device='mps'"]))
    (tmp_path / "student" / "config.json").unlink()
    refuse_what_cannot_fit(load_config(path))


def test_it_takes_neither_torch_nor_long() -> None:
    code = (
        "import sys, time; from opd_core.config.load import load_config; "
        "from flows.stage import memory_check as m; "
        f"config = load_config({str(ROOT / 'configs' / 'tiny.toml')!r}); "
        "began = time.process_time(); m.refuse_what_cannot_fit(config); "
        "print(time.process_time() - began); "
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(done.stdout) < 0.3
    assert memory_check.__doc__


@pytest.mark.parametrize("asked", [["--gpu", "H100"], ["--memory-gib", "80"]])
def test_plan_prints_stages_and_ends_with_what_fits(
    asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(ROOT / "configs" / "video_opd_qwen3vl.toml")
    assert cli.main(["plan", config, *asked]) == 0
    said = capsys.readouterr().out
    assert "the shape of Qwen3-VL-8B" in said and "all stages fit" in said
    for stage in ("validate", "rollout", "score", "update", "evaluate"):
        assert stage in said


def test_plan_names_the_setting_and_gives_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "configs" / "qwen3vl_8b_8cards.toml")
    assert cli.main(["plan", config, "--gpu", "H100", "--devices", "1"]) == 1
    said = capsys.readouterr().out
    assert 'it fits with --set update.weights="bfloat16" --set update.optimizer=' in said
    assert cli.main(["plan", config, "--gpu", "H100", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["fits"] and content["machine"]["devices"] == 8, "those of [cluster]"
    assert cli.main(["plan", config, "--mfu", "2"]) == 2
