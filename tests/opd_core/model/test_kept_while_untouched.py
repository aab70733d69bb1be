"""What is kept of a checkpoint folder is made again when a file of it has changed."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from opd_core.model import checkpoint
from opd_core.model.checkpoint import check_checkpoint, open_checkpoint
from opd_core.model.kept import kept_while_untouched
from opd_core.model.model_config import opened_config
from opd_core.model.weight_files import stored_tensors
from opd_core.prompts.encoder import load_processor, processor_hash
from opd_core.types import VideoOPDError
from tests.tiny_config import ROOT

SHIPPED = ROOT / "configs" / "tiny" / "student"


def test_it_is_made_once_a_folder_until_a_file_changes(tmp_path: Path) -> None:
    made: list[str] = []

    @kept_while_untouched
    def content(folder: Path) -> str:
        made.append(folder.name)
        return (folder / "a.json").read_text()

    folders = [tmp_path / name for name in ("0", "1")]
    for folder in folders:
        folder.mkdir()
        (folder / "a.json").write_text("one")
    assert [content(folder) for folder in folders * 2] == ["one"] * 4
    assert made == ["0", "1"]
    file = folders[0] / "a.json"
    before = file.stat()
    file.write_text("two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a copy with its times would
    assert content(folders[0]) == "two"
    (folders[0] / "b.jinja").write_text("")
    (folders[1] / "model.safetensors").write_bytes(b"weights")
    assert [content(folder) for folder in folders] == ["two", "one"]
    assert made == ["0", "1", "0", "0"]


def test_what_is_raised_is_not_kept(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SHIPPED, tmp_path / "student"))
    file = folder / "processor_config.json"
    file.rename(tmp_path / "aside.json")
    with pytest.raises(VideoOPDError, match="has no usable processor"):
        load_processor(folder)
    (tmp_path / "aside.json").rename(file)
    assert processor_hash(load_processor(folder)) == processor_hash(load_processor(SHIPPED))


def test_stages_share_a_processor_and_see_another_template(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SHIPPED, tmp_path / "student"))
    first = load_processor(folder)
    assert load_processor(folder) is first
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "{# other words #}")
    second = load_processor(folder)
    assert second is not first and processor_hash(second) != processor_hash(first)


def test_a_model_that_is_opened_and_changed_leaves_the_config_as_it_was() -> None:
    kept = opened_config(SHIPPED)
    before = kept.to_json_string(use_diff=False)
    model = open_checkpoint(SHIPPED, "bfloat16")
    model.config.text_config.vocab_size = 7
    assert opened_config(SHIPPED) is kept
    assert kept.to_json_string(use_diff=False) == before


def test_a_checkpoint_is_found_whole_once_until_its_weights_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Path] = []

    def counted(folder: Path) -> Any:
        looks.append(folder)
        return stored_tensors(folder)

    monkeypatch.setattr(checkpoint, "stored_tensors", counted)
    folder = Path(shutil.copytree(SHIPPED, tmp_path / "student"))
    check_checkpoint(folder)
    check_checkpoint(folder)
    assert looks == [folder]
    weights = folder / "model.safetensors"
    before = weights.stat()
    tensors = load_file(weights)
    name = min(tensors)
    save_file({n: t for n, t in tensors.items() if n != name}, weights, {"format": "pt"})
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    for _ in range(2):  # what is wrong is looked at again
        with pytest.raises(VideoOPDError, match=re.escape(name)):
            check_checkpoint(folder)
    shutil.copyfile(SHIPPED / "model.safetensors", weights)
    check_checkpoint(folder)
    assert len(looks) == 4
