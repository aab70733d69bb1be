from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows.cli import main
from opd_core.tinyworld.world import World
from opd_core.types import VideoOPDError
from storage.asking.export import DEFAULT, NAMES, export
from storage.runs.run import Run
from tests.storage.finished_run import Finished, finished_run
from tests.storage.storage_factories import new_run


@pytest.fixture(scope="module")
def finished(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished_run(tmp_path_factory.getbasetemp() / "finished", tiny_world.videos.parent)


def card(folder: Path) -> dict[str, dict[str, list[str]]]:
    """config -> split -> files, as `datasets` reads them from the card's YAML."""
    yaml = pytest.importorskip("yaml")
    content = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert content["configs"][0]["default"] is True
    return {
        config["config_name"]: {part["split"]: part["path"] for part in config["data_files"]}
        for config in content["configs"]
    }


def test_hf_has_a_card_that_names_files_that_are_there(finished: Finished, tmp_path: Path) -> None:
    rows = export(Run.open(finished.run), "hf", tmp_path / "out", NAMES)
    found = card(tmp_path / "out")
    assert set(found) == {name for name, count in rows.items() if count}
    assert set(found["examples"]) == {"train", "eval"}
    for name, splits in found.items():
        frames = [pl.read_parquet(tmp_path / "out" / path) for paths in splits.values()
                  for path in paths]  # fmt: skip
        assert sum(frame.height for frame in frames) == rows[name]
    text = (tmp_path / "out" / "README.md").read_text()
    assert Run.open(finished.run).run_id in text and "log pi_v, recorded while sampling." in text


def test_hf_opens_with_load_dataset(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    export(Run.open(finished.run), "hf", tmp_path / "out", ["trajectories", "rollouts"])
    opened = datasets.load_dataset(
        str(tmp_path / "out"), "trajectories", cache_dir=str(tmp_path / "cache")
    )
    assert opened["train"].num_rows == Run.open(finished.run).rollouts().collect().height


def test_parquet_and_jsonl_hold_the_rows(finished: Finished, tmp_path: Path) -> None:
    run = Run.open(finished.run)
    expected = run.trajectories().collect()
    export(run, "parquet", tmp_path / "p")
    found = pl.read_parquet(tmp_path / "p" / "trajectories.parquet")
    assert found.equals(expected)
    export(run, "jsonl", tmp_path / "j", ["trajectories"])
    lines = (tmp_path / "j" / "trajectories.jsonl").read_text().splitlines()
    assert [json.loads(line)["rollout_id"] for line in lines] == expected["rollout_id"].to_list()
    assert [p.name for p in (tmp_path / "p").iterdir()] == ["trajectories.parquet"]


def test_the_command_exports_a_round_with_the_text_of_its_tokens(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    arguments = ["export", f"{finished.run}@1", "--to", "parquet", "--out", str(out)]
    assert main([*arguments, "--table", "tokens", "--table", "updates"]) == 0
    printed = capsys.readouterr().out
    assert "wrote 1 rows of updates to " in printed and "open with polars.read_parquet(" in printed
    assert pl.read_parquet(out / "tokens.parquet")["text"].null_count() == 0


def test_a_folder_with_content_is_left_alone(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(VideoOPDError, match="is not empty; give --out a new folder"):
        export(Run.open(finished.run), "hf", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_cannot_be_exported_leaves_nothing(finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(VideoOPDError, match="no table 'rollout'; the tables are: examples"):
        export(Run.open(finished.run), "hf", tmp_path / "out", ["rollout"])
    with pytest.raises(VideoOPDError, match="no format 'csv'; they are: parquet"):
        export(Run.open(finished.run), "csv", tmp_path / "out")
    with pytest.raises(VideoOPDError, match="has no rows of trajectories yet; run a round first"):
        export(new_run(tmp_path / "empty"), "hf", tmp_path / "out", DEFAULT)
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


def test_an_export_that_fails_halfway_leaves_nothing(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("storage.asking.export._card", full)
    with pytest.raises(VideoOPDError, match="its disk is full"):
        export(Run.open(finished.run), "hf", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
