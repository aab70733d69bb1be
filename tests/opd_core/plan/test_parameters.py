"""Numbers counted from config.json are those of the very models that transformers makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from opd_core import torchvision_guard
from opd_core.model.architectures import ARCHITECTURES
from opd_core.plan.parameters import lora_parameters, parameters_of
from opd_core.plan.published import PUBLISHED, published
from opd_core.plan.shapes import ModelShape, shape_in, shape_of
from opd_core.types import VideoOPDError
from tests.opd_core.model.test_tree_model import qwen

ROOT = Path(__file__).resolve().parents[3]


def made_of(content: dict[str, object], shape: ModelShape) -> nn.Module:
    """The model of a config.json, without memory for its weights."""
    torchvision_guard.install()
    kind = shape.family.load_class()
    config = kind.config_class(**{k: v for k, v in content.items() if k != "model_type"})
    with torch.device("meta"):
        model = kind(config)
    model.tie_weights()
    assert isinstance(model, nn.Module)
    return model


def counted(model: nn.Module, shape: ModelShape) -> tuple[int, int]:
    """(all numbers, those of vision)."""
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    return sum(sizes.values()), sum(n for name, n in sizes.items() if shape.family.is_vision(name))


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_shapes_are_counted_exactly(name: str) -> None:
    content = json.loads(json.dumps(PUBLISHED[name]))
    shape = shape_of(content, name)
    numbers = parameters_of(shape)
    assert (numbers.all, numbers.vision) == counted(made_of(content, shape), shape)


def test_published_shapes_have_the_sizes_that_are_told_of_them() -> None:
    eight, large = (parameters_of(shape_of(PUBLISHED[f"Qwen3-VL-{n}"], n)) for n in ("8B", "32B"))
    assert eight.all / 1e9 == pytest.approx(8.77, abs=0.005)
    assert eight.vision / 1e9 == pytest.approx(0.58, abs=0.005)
    assert large.all * 2 / 1e9 == pytest.approx(66.7, abs=0.05)


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_every_family_is_counted_exactly(family: str) -> None:
    model = qwen(family)
    shape = shape_of(model.config.to_dict(), family)
    numbers = parameters_of(shape)
    assert (numbers.all, numbers.vision) == counted(model, shape)
    tower = shape.family.module(model, shape.family.vision)
    merging = {m.rsplit(".", 1)[-1] for m in shape.family.mergers}
    assert numbers.mergers == sum(
        p.numel() for n, p in tower.named_parameters() if n.split(".")[0] in merging
    )
    assert numbers.largest == max(p.numel() for p in shape.family.module(
        model, shape.family.text).parameters() if p.ndim > 1)  # fmt: skip


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_an_adapter_is_counted_exactly(family: str) -> None:
    from peft import LoraConfig

    from opd_core.update.trainable import language_modules

    model = qwen(family)
    shape = shape_of(model.config.to_dict(), family)
    names = shape.family.lora_modules
    model.add_adapter(LoraConfig(r=3, target_modules=language_modules(model, shape.family, names)))
    real = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    assert lora_parameters(shape, 3, frozenset(names)) == real


def test_the_tiny_models_are_read_from_their_folders() -> None:
    shape, known = shape_in(ROOT / "configs" / "tiny" / "student")
    assert known is None and shape.tied and parameters_of(shape).all == 673_168


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("Qwen3-VL-8B-Instruct", "Qwen3-VL-8B"),
        ("Qwen3-VL-32B-GRPO", "Qwen3-VL-32B"),
        ("TimeLens-8B", "Qwen3-VL-8B"),
        ("qwen3-vl-2b", "Qwen3-VL-2B"),
        ("Qwen2.5-VL-7B", None),
        ("Qwen3-VL-235B-A22B", None),
        ("Qwen3-VL-30B-A3B-Instruct", None),
    ],
)
def test_a_name_tells_a_published_shape(folder: str, name: str | None) -> None:
    known = published(folder)
    assert (known and known[0]) == name


def test_what_no_shape_can_be_told_of_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(VideoOPDError, match="there is no config.json in .*mine, and its name"):
        shape_in(tmp_path / "mine")
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_text("{")
    with pytest.raises(VideoOPDError, match="config.json cannot be read"):
        shape_in(folder)
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(VideoOPDError, match="config.json cannot be read .RecursionError"):
        shape_in(folder)
    content = json.loads(json.dumps(PUBLISHED["Qwen3-VL-2B"]))
    del content["text_config"]["hidden_size"]
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(VideoOPDError, match=r"hidden_size in text_config of .* is None"):
        shape_in(folder)
    (folder / "config.json").write_text(json.dumps(content | {"model_type": "gemma4"}))
    with pytest.raises(VideoOPDError, match="gemma4"):
        shape_in(folder)


def test_a_name_on_the_hub_that_tells_no_shape_is_told_how_to_bring_its_config() -> None:
    with pytest.raises(VideoOPDError, match="`hf download org/mine config.json --revision v1`"):
        shape_in(Path("org/mine@v1"))
